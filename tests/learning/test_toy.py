"""The policy learns what it is rewarded for, and nothing where the reward says nothing of the text."""

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
    """P(我爱你。) by the product of its four factors."""
    table = logits.softmax(-1)
    return float(table[4, 0] * table[0, 1] * table[1, 2] * table[2, 3])


class Shuffled:
    """The rewards of a step, dealt out to its completions at random: the same numbers, independent of the texts."""

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
    place = folder / str(seed)
    place.mkdir()
    learner.policy.save(place)
    return probability(load_file(place / "model.safetensors")["logits"])


@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_every_preset_learns_to_say_it(algorithm, tmp_path):
    # From 0.24; after 40 steps of 32 samples all presets and seeds stood between 0.921 and 0.939 when this was written,
    # but for online_dpo, which looks at two of a prompt's eight samples and is pulled back: between 0.900 and 0.913.
    found = [learnt(algorithm, seed, tmp_path) for seed in SEEDS]
    assert min(found) > (0.88 if PRESETS[algorithm].paired else 0.9), found


@pytest.mark.slow
def test_several_updates_a_step_learn_as_well(tmp_path):
    found = [learnt("reinforce_pp", seed, tmp_path, keys=["epochs=2", "minibatches=2"]) for seed in SEEDS]
    assert min(found) > 0.9, found


@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_shuffled_rewards_teach_nothing(algorithm, tmp_path):
    # A random walk around 0.24: between 0.15 and 0.54 when this was written (online_dpo: 0.19 and 0.35).
    found = [learnt(algorithm, seed, tmp_path, shuffled=True) for seed in SEEDS]
    assert min(found) > 0.08, found
    assert max(found) < 0.65, found
    assert 0.15 < sum(found) / len(found) < 0.4, found


def right_so_far(text: str) -> float:
    """The share of 我爱你。 that the text begins with: each character earns its quarter where it comes."""
    return next((place for place in range(4) if text[place : place + 1] != "我爱你。"[place]), 4) / 4


@pytest.mark.parametrize("algorithm", [name for name, preset in PRESETS.items() if preset.supports_token_rewards])
def test_credit_by_token_learns_to_say_it(algorithm):
    found = []
    for seed in SEEDS:
        recipe = load_recipe("toy", [f"algorithm.use={algorithm}"], changes={"seed": seed, "steps": STEPS})
        learner, _ = build(recipe)
        part = Part("right_so_far", reward_function("right_so_far", right_so_far), credit="token")
        learner.scorer = Combination([part], decode=learner.policy.decode)
        for _ in range(STEPS):
            train_step(learner)
        found.append(probability(learner.policy.parameter.detach()))
    # Between 0.915 and 0.936 when this was written.
    assert min(found) > 0.9, found
