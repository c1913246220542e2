"""Model cards: what they state of a run, complete or not, and that Hugging Face's library reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from burnish.errors import BurnishError, InputError
from burnish.reports.final import write_final_reports
from burnish.reports.model_card import CARD, model_card, write_model_card
from tests.fakes import RecordingObserver
from tests.reports.synthetic_run import write_lines, write_run


def write(folder: Path, recipe: str, *files: str) -> str:
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    for name in files:
        (folder / "model" / name).write_text("{}", encoding="utf-8")
    return write_model_card(folder).read_text(encoding="utf-8")


def test_a_runs_card_is_read_by_hugging_faces_library(tmp_path: Path) -> None:
    card = ModelCard.load(write_model_card(write_run(tmp_path)))
    measured = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert card.data.model_name and {one.metric_value for one in card.data.eval_results} == {
        row["after"] for row in measured.values() if row["after"] is not None
    }
    for section in ("Held-out results", "Data", "Safety", "Known failures", "Limits"):
        assert f"## {section}\n" in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_the_base_model_is_named_with_its_licence_only_if_the_run_began_with_it(tmp_path: Path) -> None:
    text = write(tmp_path / "one", 'name = "a"\nsteps = 1\n[policy]\nmodel = "smollm2-135m"\n', "config.json")
    assert "Licence: Apache-2.0" in text and ModelCard(text).data.library_name == "transformers"
    table = write(tmp_path / "two", 'name = "a"\nsteps = 1\n[policy]\nuse = "tabular"\nmodel = "smollm2-135m"\n')
    assert "from a `tabular` policy" in table and "smollm2" not in table
    assert ModelCard(table).data.library_name is None and ModelCard(table).data.license is None
    own = write(tmp_path / "three", f'name = "a"\nsteps = 1\n[policy]\nmodel = "{tmp_path}/m"\n', "adapter_config.json")
    assert "licence is not known" in own and str(tmp_path) not in own
    assert ModelCard(own).data.library_name == "peft"


def test_a_reward_model_classifies_texts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    row = {"before": 0.5, "after": 0.75, "difference": 0.25, "interval": [0.1, 0.4], "p_value": 0.001, "n": 40}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"preference_accuracy": row}), encoding="utf-8")
    card = ModelCard(write(tmp_path / "run", 'kind = "reward-model"\nname = "a"\nsteps = 1\n'))
    assert card.data.pipeline_tag == "text-classification" and "method `reward-model`" in card.text
    assert [one.task_type for one in card.data.eval_results] == ["text-classification"]


def test_a_run_that_was_stopped_states_its_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "25 steps" in model_card(run)
    write_lines(run / "metrics.jsonl", [{"step": 1}, {"step": 7}])
    assert "7 of 25 steps" in model_card(run)


def test_a_run_trained_past_its_release_is_not_called_released(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    record = {"step": 20, "released_at": "now", "flagged": {"total": 1, "rejected": 0},
              "review": {"by_reviewer": {"ann": 1}, "agreement": {}}}  # fmt: skip
    (run / "release.json").write_text(json.dumps(record), encoding="utf-8")
    assert "no person has approved the one after step 25" in model_card(run)
    (run / "release.json").write_text(json.dumps({**record, "step": 25}), encoding="utf-8")
    assert "no person has approved" not in model_card(run)


def test_a_card_that_cannot_be_written_does_not_end_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / CARD / "in the way").mkdir(parents=True)
    observer = RecordingObserver()
    assert write_final_reports(run, observer).is_file()
    (text,) = (text for text in observer.texts if "model card" in text)
    assert text.startswith(f"the model card was not written: cannot write {run / CARD}: ")
    with pytest.raises(BurnishError, match="cannot write"):
        write_model_card(run)
    with pytest.raises(InputError, match="not a folder"):
        write_model_card(tmp_path / "nowhere")


def test_a_card_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom burnish.reports.model_card import write_model_card\n"
        f"write_model_card(Path({str(run)!r}))\nprint({{'torch', 'transformers', 'plotly'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
