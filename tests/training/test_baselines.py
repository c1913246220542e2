"""The moving mean of each prompt's own rewards: by hand, in a step, and taken up again to the bit."""

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
from burnish.training.baselines import of_prompts, remember
from burnish.types import Group, Prompt

P, Q = Group(Prompt("p", ""), ()), Group(Prompt("q", ""), ())


def rewards(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_by_hand():
    known: dict[str, float] = {}
    assert of_prompts([P, Q], known, 0.25).tolist() == [[0.25], [0.25]]
    remember(known, [P], rewards((1.0, 3.0)))
    assert known == {"p": 2.0}
    # p has its own mean; q, not sampled yet, the common one.
    assert of_prompts([Q, P], known, 0.25).tolist() == [[0.25], [2.0]]
    remember(known, [P, Q], rewards((0.0, 0.0), (4.0, 6.0)))
    assert known == pytest.approx({"p": 0.9 * 2.0, "q": 5.0})


def test_a_prompt_that_is_drawn_twice_counts_twice():
    known = {"p": 1.0}
    assert of_prompts([P, P], known, 0.0).tolist() == [[1.0], [1.0]]
    remember(known, [P, P], rewards((0.0,), (10.0,)))
    # 0.9 * 1 + 0 = 0.9; 0.9 * 0.9 + 0.1 * 10 = 1.81.
    assert known == pytest.approx({"p": 1.81})


KEYS = ["algorithm.use=reinforce_baseline", "algorithm.baseline=prompt", "checkpoint.every=3", "checkpoint.keep=9"]


def test_a_resumed_run_is_one_never_stopped(tmp_path):
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


def test_others_have_none():
    with pytest.raises(
        InputError, match=r"algorithm\.baseline = \"prompt\": 'grpo' has no moving baseline; .*use reinfo"
    ):
        load_recipe("toy", ["algorithm.use=grpo", "algorithm.baseline=prompt"])
    written = load_recipe("toy", ["algorithm.use=reinforce_baseline"]).resolved().algorithm
    assert written.baseline == "batch"
