"""Reward guards: a gamed reward raises an alarm and, if configured, stops the run; an honest one does neither."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from burnish.api import train
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable, read_lines
from burnish.types import Completion

SEEDS = range(5)
# The target is 我爱你。; the guard is chrF against it, which is not trained on.
WATCHED = [
    "steps=40", "evaluation.every=10", "evaluation.resamples=200", "evaluation.samples_per_prompt=8",
    'evaluation.metrics=["chrf"]',
]  # fmt: skip


def says_i(completion: Completion) -> float:
    """Return the number of 我 over the length limit, which is easy to game by repeating 我."""
    return completion.text.count("我") / 4


def run(folder: Path, reward: Any, seed: int, *overrides: str) -> tuple[Any, list[Mapping[str, Any]]]:
    result = train(
        "toy", rewards={reward: 1.0}, seed=seed, run_dir=folder, overrides=[*WATCHED, *overrides],
        observer=make_observer(quiet=True),
    )  # fmt: skip
    return result, list(read_lines(folder / "warnings.jsonl"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gamed_reward_raises_an_alarm(seed: int, tmp_path: Path) -> None:
    result, warnings = run(tmp_path / "run", says_i, seed)
    gamed = [row for row in warnings if "'chrf', which is not trained on, got worse" in row["text"]]
    assert gamed and result.evaluation["reward"]["interval"][0] > 0 > result.evaluation["metric/chrf"]["interval"][1]
    # The alarm came during training, the report shows it, and the run was not stopped.
    assert min(row["step"] for row in gamed) < 40 and len(result.metrics) == 40
    assert "which is not trained on, got worse" in result.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("seed", SEEDS)
def test_an_honest_reward_raises_no_alarm(seed: int, tmp_path: Path) -> None:
    result, warnings = run(tmp_path / "run", "exact", seed, "guards.stop=true")
    assert result.evaluation["reward"]["interval"][0] > 0 < result.evaluation["metric/chrf"]["interval"][0]
    assert warnings == [] and len(result.metrics) == 40


def test_a_stopped_run_keeps_the_best_model_before_the_alarm(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result, warnings = run(folder, says_i, 0, "guards.stop=true", "checkpoint.keep=1", "checkpoint.every=4")
    (stop,) = [row for row in warnings if row["kind"] == "stop"]
    assert len(result.metrics) == stop["step"] < 40
    held_out = {
        row["step"]: row["reward"] for row in read_lines(folder / "held_out.jsonl") if row["step"] < stop["step"]
    }
    before = json.loads((folder / "evaluation" / "before.json").read_text(encoding="utf-8"))["samples"]
    held_out[0] = sum(sample["reward"] for sample in before) / len(before)
    assert stop["kept"] == max(held_out, key=held_out.__getitem__)
    # The run's model and its final measurement are those of that step.
    assert (folder / "model").resolve() == folder.resolve() / "checkpoints" / f"step-{stop['kept']}" / "model"
    assert result.evaluation["reward"]["after"] == held_out[stop["kept"]]
    page = result.report.read_text(encoding="utf-8")
    assert f"stopped after step {stop['step']} of 40" in page and f"the model of step {stop['kept']} is kept" in page
    # Resuming a stopped run changes nothing, to the last bit.
    logits = load_file(folder / "model" / "model.safetensors")["logits"]
    again = train(resume=folder, observer=make_observer(quiet=True))
    assert [comparable(row) for row in again.metrics] == [comparable(row) for row in result.metrics]
    assert list(read_lines(folder / "warnings.jsonl")) == warnings and again.evaluation == result.evaluation
    assert torch.equal(load_file(folder / "model" / "model.safetensors")["logits"], logits)


def test_a_later_model_is_kept_if_it_is_better(tmp_path: Path) -> None:
    # Reward and target agree in part: the reward rises honestly at first and is gamed later.
    folder = tmp_path / "run"
    result, warnings = run(
        folder, says_i, 1, "guards.stop=true", "checkpoint.keep=1", "evaluation.every=2", "guards.metric_drop=0.5"
    )
    (stop,) = [row for row in warnings if row["kind"] == "stop"]
    assert 0 < stop["kept"] < stop["step"] and result.evaluation["reward"]["interval"][0] > 0
    assert (folder / "checkpoints" / f"step-{stop['kept']}").exists()
