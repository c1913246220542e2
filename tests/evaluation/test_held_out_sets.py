"""Further held-out sets: their prompts, their rows in the evaluation, and what a recipe may say of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.api import evaluate
from burnish.backends.held_out_sets import held_out_sets
from burnish.backends.prompts import task_prompts
from burnish.errors import InputError
from burnish.evaluation.held_out import compare, summary
from burnish.evaluation.measurement import Measurement
from burnish.recipe.schema import Recipe, load_recipe
from burnish.reports.model_card import model_card
from burnish.reports.wording import ordered, title
from tests.evaluation.test_held_out import AFTER, measured
from tests.fakes import SUBJECTS, RecordingObserver, write_lines

ROWS = [{"prompt": f"The {subject} said {n}", "answer": str(n)} for n in range(3) for subject in SUBJECTS]


def recipe(folder: Path, *sets: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe with rows of its own and two sets, one of which repeats a training prompt in other white space."""
    write_lines(folder / "rows.jsonl", ROWS)
    seen = [{"prompt": f"the  {subject} said {n}", "answer": "0"} for n in range(3) for subject in SUBJECTS[:1]]
    write_lines(folder / "hard.jsonl", [{"prompt": f"A {s} asked", "answer": "7"} for s in SUBJECTS] + seen)
    return {
        "name": "sets",
        "task": {"use": "data", "path": str(folder / "rows.jsonl"), "reference": "answer", "held_out_percent": 30},
        "reward": [{"use": "exact"}],
        "evaluation": {"sets": list(sets) or [{"name": "hard", "path": str(folder / "hard.jsonl")}]},
        **changes,
    }


def prompts(folder: Path, *sets: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    chosen, observer = load_recipe(recipe(folder, *sets, **changes)), RecordingObserver()
    train, _ = task_prompts(chosen)
    return held_out_sets(chosen, train, observer=observer), [text for _, text in observer.messages]


class TestPrompts:
    def test_all_rows_are_held_out_and_read_as_those_of_the_task(self, tmp_path):
        sets, _ = prompts(tmp_path)
        assert [(one.text, one.reference) for one in sets["hard"]][:1] == [(f"A {SUBJECTS[0]} asked", "7")]
        assert len(sets["hard"]) == len(SUBJECTS) + 3

    def test_prompts_that_are_trained_on_are_counted(self, tmp_path):
        chosen = load_recipe(recipe(tmp_path))
        texts = {one.text.casefold() for one in task_prompts(chosen)[0]}
        count = sum(f"the {SUBJECTS[0]} said {n}".casefold() in texts for n in range(3))
        _, messages = prompts(tmp_path)
        warned = [text for text in messages if "also trained on" in text]
        assert count > 0 and f"set 'hard': {count} of {len(SUBJECTS) + 3} prompts" in warned[0]

    def test_messages_that_count_rows_name_their_set(self, tmp_path):
        sets = [{"name": name, "path": str(tmp_path / "rows.jsonl")} for name in ("one", "two")]
        _, messages = prompts(tmp_path, *sets)
        assert [text for text in messages if "trained on" not in text] == [
            f"set '{name}': data: {len(ROWS)} prompts" for name in ("one", "two")
        ]

    def test_a_number_of_prompts_and_columns_of_its_own(self, tmp_path):
        write_lines(tmp_path / "own.jsonl", [{"q": f"Who {s}?", "a": s} for s in SUBJECTS])
        own = {"name": "own", "path": str(tmp_path / "own.jsonl"), "prompt": "q", "reference": "a", "prompts": 2}
        sets, messages = prompts(tmp_path, own)
        assert [one.reference for one in sets["own"]] == SUBJECTS[:2] and not any("trained on" in m for m in messages)

    def test_another_task_gives_its_held_out_side(self, tmp_path):
        sets, _ = prompts(tmp_path, {"name": "toy", "use": "toy"}, reward=[{"use": "repetition"}])
        assert sets["toy"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"path": "nowhere.jsonl"}, r"evaluation\.sets\.0 \('hard'\): .*nowhere\.jsonl"),
            ({"reference": ""}, r"\('hard'\): reward\.0: 'exact' needs a reference"),
            ({"held_out": "x.jsonl"}, "held_out splits rows, but all rows of a set are held out"),
            ({"name": "a/b"}, r"evaluation\.sets\.0\.name"),
            ({"promt": "q"}, r"evaluation\.sets\.0: unknown key 'promt' \(did you mean 'prompt'\?\)"),
            (
                {"nam": "q"},
                r"unknown key 'nam' \(did you mean 'name'\?\); known: use, name, prompts, path, (?!.*held_out)",
            ),
            ({"prompts": 1}, r"evaluation\.sets\.0\.prompts"),
            ({"path": "", "side": "test"}, r"\('hard'\): .*name either path"),
        ],
    )
    def test_a_set_that_cannot_be_used_is_refused(self, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            prompts(tmp_path, {"name": "hard", "path": str(tmp_path / "hard.jsonl"), **changes})

    def test_names_must_differ(self, tmp_path):
        with pytest.raises(InputError, match="two sets are called 'x'"):
            prompts(tmp_path, {"name": "x", "path": "a.jsonl"}, {"name": "x", "path": "b.jsonl"})

    def test_the_best_model_by_a_set_that_is_not_there(self, tmp_path):
        written = recipe(tmp_path, checkpoint={"keep_best": "held_out/set/hrad/reward"})
        written["evaluation"]["every"] = 1
        with pytest.raises(InputError, match=r"'hrad' is not one of evaluation\.sets \(did you mean 'hard'\?\)"):
            load_recipe(written)

    def test_another_side_of_the_same_data_set(self):
        task = {"use": "data", "dataset": "some/set", "side": "train", "revision": "abc", "reference": "answer"}
        sets = [{"name": "test", "side": "test"}, {"name": "file", "path": "x.jsonl"}]
        chosen = Recipe.model_validate(
            {"name": "n", "task": task, "reward": [{"use": "exact"}], "evaluation": {"sets": sets}}
        )
        first, second = (one.task_options(chosen.task) for one in chosen.evaluation.sets)
        assert first == {"dataset": "some/set", "side": "test", "revision": "abc", "reference": "answer"}
        assert second == {"path": "x.jsonl", "reference": "answer"}


class TestMeasurement:
    def test_sets_have_rows_of_their_own(self):
        before = replace(measured(), sets={"hard": measured(), "easy": measured(AFTER)})
        after = replace(measured(), sets={"hard": measured(AFTER), "easy": measured(AFTER)})
        rows, alone = compare(before, after), compare(measured(), measured(AFTER))
        assert rows["reward"]["difference"] == rows["set/easy/reward"]["difference"] == 0
        assert {name: rows[f"set/hard/{name}"] for name in alone} == alone
        assert summary(after)["set/hard/reward"] == summary(measured(AFTER))["reward"]
        assert Measurement.from_json(after.to_json()) == after

    def test_a_measurement_without_sets_has_no_key_of_them(self):
        data = json.loads(measured().to_json())
        assert not {"sets", "majorities"} & data.keys() and "vote" not in data["samples"][0]

    def test_order_and_titles(self):
        names = ["set/b/chrf", "set/b/reward", "chrf", "set/a/reward/exact", "reward"]
        order = ["reward", "chrf", "set/b/reward", "set/b/chrf", "set/a/reward/exact"]
        assert ordered({name: {} for name in names}) == order
        assert [title(name) for name in names[:4]] == ["b: chrF", "b: reward", "chrF", "a: reward: exact"]


@pytest.mark.slow
def test_a_run_measures_its_sets_and_keeps_the_best_of_one(tmp_path, tiny):
    changes = {
        "steps": 2, "policy": {"model": str(tiny())}, "reward": [{"use": "repetition"}],
        "sampling": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4},
        "checkpoint": {"keep_best": "held_out/set/hard/reward"},
    }  # fmt: skip
    written = recipe(tmp_path, **changes)
    written["task"]["chat"] = False
    written["evaluation"] |= {"every": 1, "resamples": 100, "prompts": 4}
    observer = RecordingObserver()
    result = burnish.train(written, run_dir=tmp_path / "run", observer=observer, offline=True)
    hard = result.evaluation["set/hard/reward"]
    assert hard["n"] == len(SUBJECTS) + 3 and result.evaluation["reward"]["n"] == 4
    assert (tmp_path / "run" / "model_best").exists()
    row = json.loads((tmp_path / "run" / "held_out.jsonl").read_text().splitlines()[0])
    assert {"reward", "set/hard/reward"} <= row.keys()
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())["inputs"]
    assert [Path(name).name for name in inputs["evaluation.sets.0.path"]] == ["hard.jsonl"]
    assert "hard: reward" in result.report.read_text()
    assert "| hard: reward |" in model_card(tmp_path / "run")
    warnings = (tmp_path / "run" / "warnings.jsonl").read_text()
    assert "set 'hard'" in warnings
    # The task's own rows are those of a run without sets.
    written["evaluation"].pop("sets")
    written["checkpoint"] = {}
    alone = burnish.train(written, run_dir=tmp_path / "alone", observer=RecordingObserver(), offline=True)
    assert {name: row for name, row in result.evaluation.items() if not name.startswith("set/")} == alone.evaluation
    again = evaluate(str(tmp_path / "run"), offline=True, observer=RecordingObserver())
    assert again["set/hard/reward"] == pytest.approx(hard["after"])


@pytest.mark.slow
def test_a_changed_set_is_refused_on_resume(tmp_path, tiny):
    written = recipe(tmp_path, steps=1, policy={"model": str(tiny())}, reward=[{"use": "repetition"}],
                     sampling={"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4})  # fmt: skip
    written["task"]["chat"] = False
    burnish.train(written, run_dir=tmp_path / "run", observer=RecordingObserver(), offline=True)
    write_lines(tmp_path / "hard.jsonl", ROWS)
    with pytest.raises(InputError, match=r"evaluation\.sets\.0\.path: .*hard\.jsonl has changed"):
        burnish.train(resume=tmp_path / "run", observer=RecordingObserver(), offline=True)
