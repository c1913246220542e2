"""Runs that are extended: the bits of one long run, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import burnish.training.reinforcement
from burnish.api import train
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.run.folder import comparable, read_lines
from tests.fakes import RecordingObserver, train_toy

MEMORY = "optimizer.reuse_memory=0.01"
"""Without it a recipe gets what the machine spares at that moment, which another run may not."""


def test_an_extended_run_has_the_bits_of_a_long_one(tmp_path: Path) -> None:
    options = [MEMORY, "checkpoint.every=100", "evaluation.every=2", "checkpoint.keep=9"]
    whole = train_toy(tmp_path / "whole", "steps=6", *options)
    train_toy(tmp_path / "run", "steps=4", *options)
    done = train(resume=tmp_path / "run", extend=2, observer=RecordingObserver())
    for name in ("samples.jsonl", "held_out.jsonl", "checkpoints/step-6/optimizer.safetensors", "recipe.toml"):
        assert (done.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes(), name
    assert [comparable(row) for row in done.metrics] == [comparable(row) for row in whole.metrics]
    assert done.evaluation == whole.evaluation


def test_what_would_not_be_the_long_run_is_not_extended(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "steps=2", "optimizer.schedule=linear")
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    with pytest.raises(InputError, match='schedule = "linear" brought the learning rate to zero at step 2'):
        train(resume=tmp_path / "run", extend=2, observer=RecordingObserver())
    with pytest.raises(InputError, match="--extend belongs to --resume"):
        train_toy(tmp_path / "new", extend=2)
    assert (tmp_path / "run" / "recipe.toml").read_text() == recipe and not (tmp_path / "new").exists()


GUARDED = ["evaluation.every=2", "guards.stop=true", "guards.diversity_drop=0.99", "guards.length_drift=0"]


@pytest.mark.slow
def test_the_last_measurement_of_a_guarded_run_is_forgotten(tmp_path: Path) -> None:
    """With ``guards.stop`` step 5 is measured because it is the last; one run of 8 steps does not measure it."""
    options = [MEMORY, "checkpoint.every=100", "checkpoint.keep=1", "optimizer.learning_rate=3.0", *GUARDED]
    whole = train_toy(tmp_path / "whole", "steps=8", *options)
    short = train_toy(tmp_path / "run", "steps=5", *options)
    assert [row["step"] for row in read_lines(short.run_dir / "held_out.jsonl")] == [2, 4, 5]
    done = train(resume=tmp_path / "run", extend=3, observer=RecordingObserver())
    for name in ("samples.jsonl", "held_out.jsonl", "evaluation/after.json", "recipe.toml"):
        assert (done.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes(), name
    assert {one.name for one in (done.run_dir / "checkpoints").iterdir()} == {"step-2", "step-8"}


def test_a_guarded_run_whose_best_model_was_replaced_is_not_extended(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "steps=5", "checkpoint.keep=1", "optimizer.learning_rate=0.1", *GUARDED)
    with pytest.raises(InputError, match=r"measured the last step, 5, .* replaced the best one .* start a new run"):
        train(resume=tmp_path / "run", extend=3, observer=RecordingObserver())
    assert [row["step"] for row in read_lines(tmp_path / "run" / "held_out.jsonl")] == [2, 4, 5]


@pytest.mark.parametrize("content", [None, "", "{}", '{"samples": []}', '{"samples": [1]}'])
def test_a_guarded_run_without_its_first_measurement_is_not_extended(tmp_path: Path, content: str | None) -> None:
    result = train_toy(tmp_path / "run", "steps=1", *GUARDED)
    before = result.run_dir / "evaluation" / "before.json"
    before.unlink() if content is None else before.write_text(content)
    with pytest.raises(InputError, match=r"before\.json (is missing|has .* bytes).*\n.*start a new run"):
        train(resume=tmp_path / "run", extend=3, observer=RecordingObserver())
    assert [row["step"] for row in read_lines(tmp_path / "run" / "held_out.jsonl")] == [1]


def other(text: str) -> float:
    return float(len(text))


def counted(text: str) -> float:
    return float(text.count("我"))


def test_an_extension_that_does_not_begin_is_undone(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "steps=2", rewards={counted: 1.0})
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    with pytest.raises(InputError, match="a resumed run keeps its rewards"):
        train(resume=tmp_path / "run", extend=2, rewards=other, observer=RecordingObserver())
    assert (tmp_path / "run" / "recipe.toml").read_text() == recipe
    done = train(resume=tmp_path / "run", extend=2, rewards=counted, observer=RecordingObserver())
    assert done.metrics[-1]["step"] == 4


def test_an_extension_keeps_the_options_of_the_rewards(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", "steps=2", "reward.0.clip=[0.0, 0.5]")
    done = train(resume=tmp_path / "run", extend=1, rewards="exact", observer=RecordingObserver())
    assert load_recipe(done.run_dir / "recipe.toml").reward[0].clip == (0.0, 0.5)
    assert done.metrics[-1]["reward/mean"] <= 0.5


def test_the_evaluation_of_an_extended_run_is_warned_of_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        burnish.training.reinforcement,
        "evaluation_alarms",
        lambda evaluation, **_: [f"now {evaluation['reward']['after']:.6f}"],
    )
    options = ["evaluation.every=0", "optimizer.learning_rate=1.0"]
    train_toy(tmp_path / "run", "steps=2", *options)
    done = train(resume=tmp_path / "run", extend=2, observer=RecordingObserver())
    rows = [row for row in done.run_dir.joinpath("warnings.jsonl").read_text().splitlines() if "evaluation 0" in row]
    assert [json.loads(row)["step"] for row in rows] == [4]
    assert f"now {done.evaluation['reward']['after']:.6f}" in rows[0]


def test_the_best_model_of_an_extended_run_is_there_throughout(tmp_path: Path) -> None:
    options = ["evaluation.every=4", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.keep_best=held_out/reward"]
    train_toy(tmp_path / "run", "steps=5", "optimizer.learning_rate=0.3", *options, rewards=other)
    best = tmp_path / "run" / "model_best"
    assert best.resolve().parent.name == "step-5"  # no row of held_out.jsonl is of the last step
    there = []

    class Observer(RecordingObserver):
        def step(self, metrics: Any) -> None:
            there.append(best.exists())

    train(resume=tmp_path / "run", extend=3, rewards=other, observer=Observer())
    assert there == [True] * 3 and best.exists()
