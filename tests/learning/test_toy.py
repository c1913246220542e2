"""Every preset learns the rewarded text, and none learns from rewards that are independent of the text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from burnish.algorithms.presets import PRESETS
from burnish.backends.local import build
from burnish.recipe.schema import load_recipe
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.training.step import train_step

STEPS = 40
SEEDS = range(5)


def probability(logits: torch.Tensor) -> float:
    """Return P(我爱你。), the product of four token probabilities."""
    table = logits.softmax(-1)
    return float(table[4, 0] * table[0, 1] * table[1, 2] * table[2, 3])


class Shuffled:
    """A scorer that permutes the rewards of a step: the same values, independent of the texts."""

    def __init__(self, inner, seed: int) -> None:
        self.inner, self.random = inner, np.random.default_rng(seed)

    def score(self, completions, *, step=None, flags=None):
        scores = self.inner.score(completions)
        return replace(scores, total=self.random.permutation(scores.total))


def learnt(algorithm: str, seed: int, folder, *, shuffled: bool = False, keys=()) -> float:
    chosen = [f"algorithm.use={algorithm}", *(f"algorithm.{key}" for key in keys)]
    recipe = load_recipe("toy", chosen, changes={"seed": seed, "steps": STEPS})
    learner, _ = build(recipe)
    assert probability(learner.policy.parameter.detach()) == pytest.approx(0.24, abs=1e-12)
    if shuffled:
        learner.scorer = Shuffled(learner.scorer, seed)
    for _ in range(STEPS):
        train_step(learner)
    path = folder / str(seed)
    path.mkdir()
    learner.policy.save(path)
    return probability(load_file(path / "model.safetensors")["logits"])


@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_every_preset_learns_the_text(algorithm, tmp_path):
    # From 0.24; after 40 steps of 32 samples all presets and seeds reached 0.921 to 0.939 when this was written, except
    # online_dpo, which uses two of a prompt's eight samples and is pulled to its reference: 0.900 to 0.913.
    probabilities = [learnt(algorithm, seed, tmp_path) for seed in SEEDS]
    assert min(probabilities) > (0.88 if PRESETS[algorithm].paired else 0.9), probabilities


@pytest.mark.slow
def test_several_updates_per_step_learn_as_well(tmp_path):
    probabilities = [learnt("reinforce_pp", seed, tmp_path, keys=["epochs=2", "minibatches=2"]) for seed in SEEDS]
    assert min(probabilities) > 0.9, probabilities


@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_shuffled_rewards_teach_nothing(algorithm, tmp_path):
    # A random walk around 0.24: from 0.15 to 0.54 when this was written (online_dpo: 0.19 to 0.35).
    probabilities = [learnt(algorithm, seed, tmp_path, shuffled=True) for seed in SEEDS]
    assert min(probabilities) > 0.08, probabilities
    assert max(probabilities) < 0.65, probabilities
    assert 0.15 < sum(probabilities) / len(probabilities) < 0.4, probabilities


def right_so_far(text: str) -> float:
    """Return the share of 我爱你。 that the text begins with: each character earns a quarter at its position."""
    return next((index for index in range(4) if text[index : index + 1] != "我爱你。"[index]), 4) / 4


@pytest.mark.parametrize("algorithm", [name for name, preset in PRESETS.items() if preset.supports_token_rewards])
def test_per_token_credit_learns_the_text(algorithm):
    probabilities = []
    for seed in SEEDS:
        recipe = load_recipe("toy", [f"algorithm.use={algorithm}"], changes={"seed": seed, "steps": STEPS})
        learner, _ = build(recipe)
        part = Part("right_so_far", reward_function("right_so_far", right_so_far), credit="token")
        learner.scorer = Combination([part], decode=learner.policy.decode)
        for _ in range(STEPS):
            train_step(learner)
        probabilities.append(probability(learner.policy.parameter.detach()))
    # From 0.915 to 0.936 when this was written.
    assert min(probabilities) > 0.9, probabilities
