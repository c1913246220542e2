"""Online DPO as a preset: advantages by hand, and the step's gradient against that of the DPO loss."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import burnish
from burnish.algorithms.advantages import best_and_worst, scale_as_dpo
from burnish.algorithms.ops import sum_by_sequence
from burnish.algorithms.preference import dpo_loss
from burnish.algorithms.presets import PRESETS
from burnish.errors import InputError
from burnish.exactness import world as exact
from burnish.exactness.estimators import Estimator, Groups
from burnish.exactness.verify import expectation
from burnish.policies.tabular import known_world
from burnish.training.step import train_step
from tests.fakes import FixedSampler, RecordingOptimizer, toy_learner


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_best_and_the_worst_sample_are_paired():
    rewards = tensor([1.0, 3.0, 2.0, 0.5], [1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0])
    # G = 4 gives advantages of 2; ties go to the first; a group of equal rewards has no pair.
    assert best_and_worst(rewards).tolist() == [[0, 2, 0, -2], [2, 0, -2, 0], [0, 0, 0, 0]]


def test_the_dpo_scale_by_hand():
    ratios = tensor([0.5, -0.5], [-2.0, 3.0], [1.0, 1.0])
    rewards = tensor([1.0, 0.0], [1.0, 0.0], [1.0, 1.0])
    advantages, margins = scale_as_dpo(best_and_worst(rewards), ratios, 0.2)
    # m = 0.2 * 1 and 0.2 * -5; A = +-2 beta sigmoid(-m) G / 2 = +-0.4 sigmoid(-m).
    first, second = (0.4 / (1 + math.exp(m)) for m in (0.2, -1.0))
    torch.testing.assert_close(advantages, tensor([first, -first], [second, -second], [0.0, 0.0]))
    torch.testing.assert_close(margins, tensor(0.2, -1.0, math.nan), equal_nan=True)


def test_the_mean_over_all_pairs_is_the_gradient_of_the_expected_dpo_loss():
    """Online DPO descends this loss with the probabilities of the pairs held fixed; it does not maximise a return."""
    beta, known = 0.4, known_world()
    rewards = torch.from_numpy(np.random.default_rng(3).normal(size=len(known.rewards)))
    world = replace(known, rewards=rewards)
    reference = exact.probabilities(world.reference, world.sequences).log()

    def credit(groups: Groups) -> torch.Tensor:
        ratios = exact.probabilities(world.logits, world.sequences).log() - reference
        advantages, _ = scale_as_dpo(best_and_worst(groups.rewards), ratios[groups.index], beta)
        return advantages.view(-1, 1).expand(groups.mask.shape)

    gradient = expectation(world, Estimator("", PRESETS["online_dpo"], credit=credit))

    logits = world.logits.clone().requires_grad_()
    logprobs = world.sequences.token_logprobs(logits).sum(-1)
    chance = logprobs.detach().exp()
    possible = chance.nonzero().squeeze(-1)
    # Two draws give an ordered pair in two ways. Two equal texts have equal rewards and form no pair.
    best, worst = torch.cartesian_prod(possible, possible).T
    best, worst = best[rewards[best] > rewards[worst]], worst[rewards[best] > rewards[worst]]
    ratio = logprobs - reference
    loss = (2 * chance[best] * chance[worst] * dpo_loss(ratio[best], ratio[worst], beta)).sum()
    expected = -exact.gradient(loss, logits).flatten()
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 5])
def test_the_steps_gradient_is_that_of_the_dpo_loss(samples):
    rewards = np.random.default_rng(7).normal(size=(12, samples))
    learner = toy_learner(
        "algorithm.use=online_dpo", "algorithm.beta=0.4", "optimizer.max_grad_norm=1e9",
        "sampling.prompts_per_step=12", f"sampling.samples_per_prompt={samples}", rewards=rewards.flatten(),
    )  # fmt: skip
    sampling = learner.recipe.sampling.params
    with torch.no_grad():
        # Move the policy away from its reference, so that margins are not all 0; every token stays possible.
        noise = 0.5 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        learner.policy.parameter += noise
    groups = learner.sampler.sample(learner.prompts[:12], samples_per_prompt=samples, sampling=sampling, seed=(0, 1))
    learner.sampler, learner.optimizer = FixedSampler(groups), RecordingOptimizer(learner.policy)
    report = train_step(learner)
    completions = [one for group in groups for one in group.completions]
    lengths = torch.tensor([len(one.token_ids) for one in completions])
    learner.policy.parameter.grad = None
    logprobs = learner.policy.logprobs(completions, sampling).logprobs
    ratios = sum_by_sequence(logprobs - learner.policy.reference.token_logprobs(completions), lengths).view(-1, samples)
    prompt = torch.arange(len(rewards))
    best, worst = (ratios[prompt, torch.from_numpy(index)] for index in (rewards.argmax(1), rewards.argmin(1)))
    loss = dpo_loss(best, worst, 0.4).mean()
    loss.backward()
    loss = loss.detach()
    assert float(loss) != pytest.approx(math.log(2), abs=1e-3)
    assert report.metrics["preference/loss"] == pytest.approx(float(loss), abs=1e-9)
    torch.testing.assert_close(learner.optimizer.gradient["logits"], learner.policy.parameter.grad, rtol=0, atol=1e-10)


def test_beta_is_rejected_elsewhere():
    assert PRESETS["online_dpo"].paired
    with pytest.raises(
        InputError, match=r"algorithm\.beta = 0\.2: 'rloo' does not train on pairs; remove it or use online_dpo$"
    ):
        burnish.load_recipe("toy", ["algorithm.beta=0.2"])
