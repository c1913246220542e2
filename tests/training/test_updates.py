"""Several updates on the samples of one step, the entropy bonus, and their metrics."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.errors import BurnishError
from burnish.training.batching import trained_indices, update_indices
from burnish.training.learner import Learner
from burnish.training.step import train_step
from burnish.types import Completion, Group, Prompt
from tests.fakes import toy_learner, toy_recipe, uniform_learner

SEED = (3, 2, 1)


def completion(*tokens: int, prompt: str = "p") -> Completion:
    return Completion(Prompt(prompt, ""), (), tokens, "x", (-math.log(4),) * len(tokens), "length")


GROUPS = [
    Group(Prompt("p", ""), (completion(0, 1), completion(2), completion(1, 1, 0))),
    Group(Prompt("q", ""), (completion(3, prompt="q"), completion(0, 2, prompt="q"), completion(1, prompt="q"))),
]
REWARDS = [1.0, 0.0, 3.0, 0.0, 2.0, 5.0]


def learner(rewards=REWARDS, **algorithm) -> Learner:
    sampling = {"prompts_per_step": 2, "samples_per_prompt": 3, "max_new_tokens": 4}
    optimizer = {"learning_rate": 0.5, "max_grad_norm": None}
    algorithm = {"use": "grpo", **algorithm}
    return uniform_learner(toy_recipe(sampling=sampling, optimizer=optimizer, algorithm=algorithm), GROUPS, rewards)


def logprobs(table: torch.Tensor, text: Completion) -> torch.Tensor:
    rows = [4, *text.token_ids[:-1]]
    return table.log_softmax(-1)[rows, list(text.token_ids)]


def by_hand(updates: list[list[int]], low: float, high: float, rate: float) -> torch.Tensor:
    """Return the table after all updates by the formulas of the GRPO paper, completion by completion."""
    texts = [text for group in GROUPS for text in group.completions]
    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(2, 3)
    advantages = ((rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)).flatten()
    table = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    old = [logprobs(table, text).detach() for text in texts]
    for update in updates:
        gains = []
        for index in update:
            ratio = (logprobs(table, texts[index]) - old[index]).exp()
            bounded = ratio.clamp(1 - low, 1 + high)
            gains.append(torch.minimum(ratio * advantages[index], bounded * advantages[index]).mean())
        (slope,) = torch.autograd.grad(-torch.stack(gains).mean(), table)
        table = (table.detach() - rate * slope).requires_grad_()
    return table.detach()


class TestUpdates:
    @pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (1, 2), (2, 3), (2, 4)])
    def test_the_table_matches_the_papers_formulas(self, epochs, minibatches):
        one = learner(epochs=epochs, minibatches=minibatches, clip_low=0.1, clip_high=0.3)
        train_step(one)
        updates = update_indices(2, 3, epochs=epochs, minibatches=minibatches, seed=(0, 2, 1))
        assert len(updates) == epochs * minibatches
        torch.testing.assert_close(one.policy.parameter.detach(), by_hand(updates, 0.1, 0.3, 0.5), rtol=0, atol=1e-12)

    def test_a_narrower_clip_clips_more(self):
        wide, narrow = (learner(epochs=6, clip_low=width, clip_high=width) for width in (1.0, 0.01))
        reports = [train_step(one).metrics for one in (wide, narrow)]
        assert reports[0]["clip_fraction"] < reports[1]["clip_fraction"]
        assert reports[1]["clip_fraction/low"] > 0 and reports[1]["clip_fraction/high"] > 0
        assert reports[0]["update_kl"] > reports[1]["update_kl"] > 0
        assert reports[0]["effective_sample_size"] < reports[1]["effective_sample_size"] < 1

    def test_the_two_sides_of_the_clip_are_counted_separately(self):
        # A ratio is never below 0, and in this test never above 101.
        above, below = (learner(epochs=6, clip_low=low, clip_high=high) for low, high in ((1.0, 0.01), (0.01, 100.0)))
        rows = [train_step(one).metrics for one in (above, below)]
        assert rows[0]["clip_fraction/low"] == 0 < rows[0]["clip_fraction/high"] == rows[0]["clip_fraction"]
        assert rows[1]["clip_fraction/high"] == 0 < rows[1]["clip_fraction/low"] == rows[1]["clip_fraction"]

    def test_one_update_needs_no_second_pass(self):
        one = learner()
        calls = []
        inner = one.policy.logprobs
        one.policy.logprobs = lambda *arguments, **named: (calls.append(1), inner(*arguments, **named))[1]
        metrics = train_step(one).metrics
        assert len(calls) == 1
        assert metrics["clip_fraction"] == 0
        assert metrics["effective_sample_size"] == pytest.approx(1.0, abs=1e-12)
        assert "update_kl" not in metrics

    def test_a_non_finite_later_update_is_reported(self):
        one = learner(epochs=2)
        step = one.optimizer.step

        def runs_away():
            step()
            with torch.no_grad():
                one.policy.parameter.fill_(math.nan)

        one.optimizer.step = runs_away
        with pytest.raises(
            BurnishError, match=r"step 1, update 2: the loss is nan; the earlier updates of this step are discarded"
        ):
            train_step(one)
        # The step is counted but has no row, so the loop saves no checkpoint of it.
        assert one.step == 1


class TestUpdateIndices:
    @pytest.mark.parametrize(("prompts", "group", "minibatches"), [(4, 8, 4), (3, 5, 2), (1, 6, 4), (5, 1, 3)])
    def test_every_epoch_has_every_sample_once(self, prompts, group, minibatches):
        updates = update_indices(prompts, group, epochs=3, minibatches=minibatches, seed=SEED)
        sizes = [len(update) for update in updates]
        assert max(sizes) - min(sizes) <= 1
        for epoch in range(3):
            part = updates[epoch * minibatches : (epoch + 1) * minibatches]
            assert sorted(index for update in part for index in update) == list(range(prompts * group))

    def test_samples_of_a_prompt_stay_together(self):
        for update in update_indices(4, 8, epochs=2, minibatches=4, seed=SEED):
            assert len({index // 8 for index in update}) == 1

    def test_the_shuffle_depends_only_on_the_seed(self):
        def drawn(seed):
            return update_indices(6, 2, epochs=2, minibatches=3, seed=seed)

        assert drawn(SEED) == drawn(SEED)
        assert drawn(SEED) != drawn((3, 2, 2))
        assert drawn(SEED)[:3] != drawn(SEED)[3:]

    def test_one_minibatch_has_all_samples_in_order(self):
        assert update_indices(2, 2, epochs=2, minibatches=1, seed=SEED) == [[0, 1, 2, 3]] * 2

    def test_samples_without_an_advantage_are_skipped(self):
        has_gradient = torch.tensor([False, True, False, True])
        assert trained_indices(has_gradient, [0, 1, 3]) == [1, 3]
        assert trained_indices(has_gradient, [2, 0]) == [2], "one sample, so that there are metrics"


class TestEntropy:
    def test_its_gradient_by_hand_without_advantages(self):
        one = learner([1.0] * 6, aggregation="sequence_sum", entropy=0.25)
        start = torch.tensor([0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
        with torch.no_grad():
            one.policy.parameter[4] = start
        metrics = train_step(one).metrics
        assert metrics["trained"] == 1.0
        # dH/dlogit(v) = -p(v) (log p(v) + H). Each of the 6 completions visits the start row once, with weight 1/6, so the
        # row moves by rate * 0.25 * dH/dlogit. Uniform rows have the greatest entropy, so no other row moves.
        p = start.softmax(-1)
        entropy = -(p * p.log()).sum()
        moved = 0.5 * 0.25 * -p * (p.log() + entropy)
        table = one.policy.parameter.detach()
        torch.testing.assert_close(table[4] - start, moved, rtol=0, atol=1e-12)
        assert table[:4].abs().max() < 1e-12
        assert float(moved[0]) < 0 < float(moved[1]), "towards the uniform"

    def test_without_entropy_and_advantages_nothing_moves(self):
        one = learner([1.0] * 6)
        metrics = train_step(one).metrics
        assert metrics["grad_norm"] == 0.0
        assert metrics["trained"] < 1.0

    def test_impossible_tokens_have_a_finite_gradient(self):
        one = toy_learner("algorithm.entropy=0.1")
        assert one.policy.parameter.isinf().any()
        assert math.isfinite(train_step(one).metrics["grad_norm"])
