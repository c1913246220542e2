"""The HTML report of supervised runs: fine-tuning, preferences and reward models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import burnish
from burnish.cli.app import app
from burnish.reports.conclusions import main_conclusion
from burnish.reports.page.examples import measured_examples
from burnish.reports.run_data import RunData
from burnish.run.interrupts import Interrupted
from tests.fakes import SUBJECTS, InterruptingObserver, RecordingObserver, supervised_recipe, write_lines
from tests.reports.page.test_report import Page

KINDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "sft": ("completion", {"completion": " sings & <b>dances</b>."}, ["Loss", "nats per token", "answer"]),
    "prefer": (
        "pairs",
        {"chosen": " sings & <b>dances</b>.", "rejected": " sleeps."},
        ["Preference accuracy", "margin", "rejected"],
    ),
    "reward_model": (
        "pairs",
        {"chosen": " sings & <b>dances</b>.", "rejected": " sleeps."},
        ["Calibration error over", "score/mean", "preferred"],
    ),
}


def run(kind: str, tiny: Any, folder: Path, **options: Any) -> Any:
    format, answers, _ = KINDS[kind]
    write_lines(folder / "rows.jsonl", [{"prompt": one, **answers} for one in SUBJECTS] + [{"prompt": "odd"}])
    recipe = supervised_recipe(kind.replace("_", "-"), tiny("gpt2"), str(folder / "rows.jsonl"), format=format)
    recipe["data"]["max_broken"] = 0.1
    options = {"run_dir": folder / "run", "observer": RecordingObserver(), **options}
    return getattr(burnish, kind)(recipe, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_supervised_run_has_a_report(kind: str, tiny: Any, tmp_path: Path) -> None:
    result = run(kind, tiny, tmp_path)
    source = result.report.read_text(encoding="utf-8")
    page = Page(source)
    for text in (
        *KINDS[kind][2], "Held-out evaluation", "Learning", "training examples", "1 unusable rows", "line 51", SUBJECTS[0],
        "sings & <b>dances</b>.", f'kind = "{kind.replace("_", "-")}"', "from",
    ):  # fmt: skip
        assert text in page.text, text
    assert "Missing from this report" not in page.text and "policy-gradient" not in page.text
    assert "sings & <b>" not in source.replace("&amp;", "&")  # escaped
    card = result.run_dir / "model_card.md"
    assert f"method `{kind.replace('_', '-')}`" in ModelCard.load(card).text
    result.report.unlink()
    card.unlink()
    done = CliRunner().invoke(app, ["report", str(result.run_dir)])
    assert done.exit_code == 0 and done.stdout.strip() == str(result.report)
    assert result.report.read_text(encoding="utf-8") == source and card.is_file()


@pytest.mark.slow
def test_a_stopped_run_has_one_too(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run("sft", tiny, tmp_path, observer=InterruptingObserver(after_step=2))
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "The run has made 2 of 6 steps." in page.text and "No conclusion yet" in page.text


def test_examples_are_ranked_by_their_gain() -> None:
    texts = [{"unit": unit, "prompt": unit, "answers": {"answer": "a"}} for unit in ("x", "x", "y", "z")]
    # Nats per token: 4 -> 2, 2 -> 3, 1 -> 1; z was not measured after training.
    before = [{"unit": unit, "nll": nll, "tokens": 2} for unit, nll in (("x", 8), ("x", 4), ("y", 2), ("z", 2))]
    after = [{"unit": unit, "nll": nll, "tokens": 2} for unit, nll in (("x", 4), ("x", 6), ("y", 2))]
    first, gains, losses = measured_examples(texts, before, after)
    assert [one.gain for one in first.first] == [2.0, -1.0, 0.0]
    assert [one.gain for one in gains.first] == [2.0] and [one.gain for one in losses.first] == [-1.0]
    assert gains.note == "Of 3 examples, 1 gained and 1 lost; 1 did not change."
    # An undesirable answer gains when its implicit reward falls.
    labels = [{"unit": "x", "good": good, "good_reward": good * r, "bad_reward": (1 - good) * r}
              for good, r in ((0, 0.0), (1, 0.0))]  # fmt: skip
    later = [{**labels[0], "bad_reward": -0.5}, {**labels[1], "good_reward": -0.25}]
    ranked = measured_examples(texts[:2], labels, later)
    assert [one.gain for one in ranked[0].first] == [0.5, -0.25]


def test_the_conclusion_is_about_the_runs_own_metric() -> None:
    entry = {"before": 0.5, "after": 0.8, "difference": 0.3, "interval": [0.2, 0.4], "p_value": 0.001, "n": 40}
    data = RunData("x", recipe={"kind": "prefer"}, evaluation={"preference_accuracy": {**entry, "better": "higher"}})
    assert main_conclusion(data).startswith("Held-out preference accuracy rose from 0.50 to 0.80 (difference +0.30")
    flat = {**entry, "difference": 0.01, "interval": [-0.1, 0.12], "p_value": 0.9}
    text = main_conclusion(RunData("x", recipe={"kind": "sft"}, evaluation={"truth_perplexity": flat}))
    assert "no clear evidence that held-out true-text perplexity changed" in text and "give more rows" in text


@pytest.mark.slow
def test_the_texts_that_a_run_keeps_are_data(tmp_path: Path, tiny: Any) -> None:
    result = run("prefer", tiny, tmp_path)
    lines = (result.run_dir / "held_out_examples.jsonl").read_text(encoding="utf-8").splitlines()
    units = [one["unit"] for one in json.loads((result.run_dir / "evaluation" / "before.json").read_text())["examples"]]
    assert [json.loads(line)["unit"] for line in lines] == units
    assert json.loads(lines[0])["answers"] == {"preferred": " sings & <b>dances</b>.", "rejected": " sleeps."}
