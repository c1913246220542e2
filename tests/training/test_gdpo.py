"""GDPO: parts normalised within their groups, their weighted sum over the step, and rejected recipes."""

from __future__ import annotations

import math
import tomllib

import pytest
import torch

from burnish.algorithms.advantages import batch_normalised, group_normalised
from burnish.algorithms.reward_shaping import standardise
from burnish.errors import InputError
from burnish.recipe.algorithm import resolve_rewards
from burnish.recipe.schema import load_recipe
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.types import Completion, Prompt

SMALL = {
    "name": "gdpo", "policy": {"use": "tabular"}, "task": {"use": "toy"},
    "reward": [{"use": "exact"}, {"use": "repetition", "weight": 0.5}], "algorithm": {"use": "gdpo"},
}  # fmt: skip

PARTS = torch.tensor([[[1.0, 3.0], [7.0, 7.0]], [[0.0, 100.0], [200.0, 100.0]]], dtype=torch.float64)
"""K = 2 parts, P = 2 prompts, G = 2 samples."""
WEIGHTS = torch.tensor([1.0, 0.5], dtype=torch.float64)
# Part 1: -1, 1 in the first group; equal in the second, so 0, 0. Part 2: -1, 1 and 1, -1.
# Weighted: -1.5, 1.5, 0.5, -0.5, with mean 0 and squares 2.25, 2.25, 0.25, 0.25: variance 5/3 with divisor 3.
SUMS = [[-1.5, 1.5], [0.5, -0.5]]
EXPECTED = torch.tensor(SUMS, dtype=torch.float64) / (math.sqrt(5 / 3) + 1e-4)


def gdpo(parts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return advantages [..., P, G] of parts [K, ..., P, G]."""
    return batch_normalised(torch.tensordot(weights, standardise(parts), 1))


def test_advantages_match_a_hand_calculation():
    torch.testing.assert_close(gdpo(PARTS, WEIGHTS), EXPECTED, rtol=0, atol=1e-12)


def test_advantages_do_not_depend_on_a_parts_scale_and_offset():
    moved = torch.stack([1000 * PARTS[0] - 5, 0.001 * PARTS[1] + 3])
    torch.testing.assert_close(gdpo(moved, WEIGHTS), EXPECTED, rtol=0, atol=1e-9)


def test_normalising_the_sum_loses_how_many_rewards_are_earned():
    """Normalised as a sum, earning two rewards gives the same advantage as earning one."""
    # Group 1 earns (0, 0) and (1, 0); group 2 (0, 0) and (1, 1). The sums 0, 1 and 0, 2 become equal under GRPO.
    parts = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    summed = group_normalised(parts.sum(0))
    torch.testing.assert_close(summed[0], summed[1], rtol=0, atol=1e-3)
    advantages = gdpo(parts, torch.ones(2, dtype=torch.float64))
    # An earned part scores -1, 1: the sums are -1, 1 and -2, 2.
    torch.testing.assert_close(advantages[1], 2 * advantages[0], rtol=0, atol=1e-12)


def test_leading_dimensions_are_independent_estimates():
    stacked = torch.stack([PARTS, PARTS.flip(-1)], 1)
    advantages = gdpo(stacked, WEIGHTS)
    torch.testing.assert_close(advantages[0], EXPECTED, rtol=0, atol=1e-12)
    torch.testing.assert_close(advantages[1], EXPECTED.flip(-1), rtol=0, atol=1e-12)


def test_the_scorer_and_the_preset_agree():
    texts = [(f"{a} {b}", p) for p, pair in zip("xy", PARTS.movedim(0, -1).tolist(), strict=True) for a, b in pair]
    completions = [Completion(Prompt(p, "?"), (0,), (1,), text, (0.0,), "stop") for text, p in texts]
    sections = resolve_rewards(load_recipe(SMALL).algorithm, load_recipe(SMALL).reward)
    rewards = [lambda text: float(text.split()[0]), lambda text: float(text.split()[1])]
    parts = [
        Part(section.part, reward_function(section.part, read), section.weight, normalise=section.normalise)
        for section, read in zip(sections, rewards, strict=True)
    ]
    scores = Combination(parts).score(completions, step=1)
    assert scores.total.tolist() == pytest.approx([-1.5, 1.5, 0.5, -0.5])
    advantages = batch_normalised(torch.from_numpy(scores.total).view(2, 2))
    torch.testing.assert_close(advantages, EXPECTED, rtol=0, atol=1e-12)
    # Steps are compared by unnormalised rewards: 1 + 0/2, 3 + 50, 7 + 100, 7 + 50.
    assert scores.unnormalised is not None
    assert scores.unnormalised.tolist() == [1.0, 53.0, 107.0, 57.0]


def test_the_resolved_recipe_names_the_normalisation():
    recipe = load_recipe(SMALL)
    assert [section.normalise for section in recipe.reward] == [None, None]
    assert [section.normalise for section in recipe.resolved().reward] == ["group", "group"]
    assert load_recipe(tomllib.loads(recipe.resolved().toml())) == recipe.resolved()


@pytest.mark.parametrize("use", ["gdpo", "dapo"])
def test_invalid_recipes_are_rejected(use):
    with pytest.raises(InputError, match=r'reward\.1\.normalise = "batch"'):
        rewards = [SMALL["reward"][0], {**SMALL["reward"][1], "normalise": "batch"}]
        load_recipe({**SMALL, "reward": rewards, "algorithm": {"use": use}})
    with pytest.raises(InputError, match="at least 2"):
        load_recipe(SMALL, ["sampling.samples_per_prompt=1"])
    assert load_recipe({**SMALL, "algorithm": {"use": "dapo", "refills": 0}, "reward": [
        {"use": "exact", "normalise": "batch"}]})  # fmt: skip
