"""The moving mean of each prompt's own rewards: by hand, in a step, and bit for bit after a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import burnish
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.reports.terminal.progress import make_observer
from burnish.training.advantages import MovingBaseline
from burnish.types import Group, Prompt

P, Q = Group(Prompt("p", ""), ()), Group(Prompt("q", ""), ())


def rewards(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_prompt_means_match_a_hand_calculation():
    baseline = MovingBaseline(per_prompt=True)
    baseline.mean = 0.25
    assert baseline.expected([P, Q]).tolist() == [[0.25], [0.25]]
    baseline.update([P], rewards((1.0, 3.0)), first=True)
    assert baseline.prompt_means == {"p": 2.0}
    # p has its own mean; q has not been sampled and gets the overall mean.
    assert baseline.expected([Q, P]).tolist() == [[2.0], [2.0]]
    baseline.update([P, Q], rewards((0.0, 0.0), (4.0, 6.0)), first=False)
    assert baseline.prompt_means == pytest.approx({"p": 0.9 * 2.0, "q": 5.0})
    assert baseline.mean == pytest.approx(0.9 * 2.0 + 0.1 * 2.5)


def test_a_prompt_that_is_drawn_twice_counts_twice():
    baseline = MovingBaseline(per_prompt=True)
    baseline.prompt_means = {"p": 1.0}
    assert baseline.expected([P, P]).tolist() == [[1.0], [1.0]]
    baseline.update([P, P], rewards((0.0,), (10.0,)), first=False)
    # 0.9 * 1 + 0 = 0.9; 0.9 * 0.9 + 0.1 * 10 = 1.81.
    assert baseline.prompt_means == pytest.approx({"p": 1.81})


def test_one_mean_is_shared_by_all_prompts():
    baseline = MovingBaseline()
    baseline.update([P, Q], rewards((1.0, 3.0), (2.0, 2.0)), first=True)
    assert baseline.expected([P, Q]) == 2.0
    assert baseline.state() == {"baseline": 2.0}


KEYS = [
    "algorithm.use=reinforce_baseline", "algorithm.baseline=prompt", "checkpoint.every=3", "checkpoint.keep=9",
    "evaluation.resamples=100",
]  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def state(run: Path) -> tuple[bytes, bytes]:
        newest = run / "checkpoints" / "step-6"
        return (newest / "state.json").read_bytes(), (newest / "model" / "model.safetensors").read_bytes()

    run = burnish.train("toy", run_dir=tmp_path / "a", steps=6, overrides=KEYS, observer=make_observer(quiet=True))
    whole, rows = state(run.run_dir), (run.run_dir / "samples.jsonl").read_bytes()
    kept = json.loads(whole[0])["prompt_baselines"]
    assert len(kept) > 1
    assert any(0 < value < 1 for value in kept.values())
    shutil.rmtree(run.run_dir / "checkpoints" / "step-6")
    burnish.train(resume=run.run_dir, observer=make_observer(quiet=True))
    assert state(run.run_dir) == whole
    assert (run.run_dir / "samples.jsonl").read_bytes() == rows


def test_other_presets_reject_a_baseline():
    with pytest.raises(
        InputError, match=r"algorithm\.baseline = \"prompt\": 'grpo' has no moving baseline; .*use reinfo"
    ):
        load_recipe("toy", ["algorithm.use=grpo", "algorithm.baseline=prompt"])
    written = load_recipe("toy", ["algorithm.use=reinforce_baseline"]).resolved().algorithm
    assert written.baseline == "batch"
