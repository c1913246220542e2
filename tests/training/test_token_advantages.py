"""Per-token advantages, and the gradient from per-token rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from burnish.algorithms.credit_assignment import potential_differences
from burnish.algorithms.ops import sum_by_sequence
from burnish.algorithms.presets import PRESETS
from burnish.algorithms.token_level_advantages import (
    mean_return,
    token_group_centred,
    token_group_normalised,
    token_leave_one_out,
    token_moving_baseline,
    token_reinforce,
)
from burnish.errors import BurnishError
from burnish.exactness import world as exact
from burnish.policies.tabular import TablePolicy, known_world
from burnish.recipe.algorithm import CriticSection
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from burnish.training.advantages import split_rewards, token_advantages
from burnish.training.critic import token_credit
from burnish.training.learner import Learner
from burnish.training.rollouts import collect, flag_completion
from burnish.training.step import train_step
from burnish.types import Completion, Group, Prompt, Scores, TokenRewards
from tests.fakes import FixedSampler, FixedScorer, RecordingOptimizer, toy_learner


def tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


class TestTokenwise:
    # One prompt, G = 2: texts of three tokens and of one token.
    WHOLE = tensor([1, 3])
    TO_GO = tensor([[5, 4, 1], [2, 0, 0]])
    MASK = torch.tensor([[[True] * 3, [True, False, False]]])

    def test_reinforce_uses_returns(self):
        close(token_reinforce(self.WHOLE, self.TO_GO, self.MASK), [[[6, 5, 2], [5, 0, 0]]])

    def test_a_baseline_is_subtracted(self):
        close(token_moving_baseline(self.WHOLE, self.TO_GO, self.MASK, 2.0), [[[4, 3, 0], [3, 0, 0]]])
        close(token_moving_baseline(self.WHOLE, self.TO_GO, self.MASK, tensor([2])), [[[4, 3, 0], [3, 0, 0]]])

    def test_the_mean_of_the_other_samples_is_subtracted(self):
        # Whole texts: 1 - 3 and 3 - 1. Positions: 5 - 2, then 4 - 0 and 1 - 0, after the other text has ended.
        close(token_leave_one_out(self.WHOLE, self.TO_GO, self.MASK), [[[1, 2, -1], [-1, 0, 0]]])
        close(token_group_centred(self.WHOLE, self.TO_GO, self.MASK), [[[0.5, 1, -0.5], [-0.5, 0, 0]]])

    def test_group_normalisation_divides_by_the_spread(self):
        # Mean squares over tokens: (0.25 + 1 + 0.25) / 3 = 0.5 and 0.25; their sum is divided by G - 1 = 1.
        scale = 1 / (math.sqrt(0.75) + 1e-4)
        advantages = token_group_normalised(self.WHOLE, self.TO_GO, self.MASK)
        close(advantages, [[[0.5 * scale, scale, -0.5 * scale], [-0.5 * scale, 0, 0]]])

    def test_equal_totals_with_different_paths_do_not_explode(self):
        # The totals are 1 and 1, with deviation 0; the rewards-to-go at the second token differ by 1.
        to_go, mask = tensor([[1, 1], [1, 0]]), torch.ones(1, 2, 2, dtype=torch.bool)
        advantages = token_group_normalised(torch.zeros(1, 2, dtype=torch.float64), to_go, mask)
        # Centred: 0, 1/2 and 0, -1/2; the spread is sqrt(1/8 + 1/8) = 1/2.
        close(advantages, [[[0, 0.5 / 0.5001], [0, -0.5 / 0.5001]]])

    def test_the_mean_return(self):
        close(mean_return(self.WHOLE, self.TO_GO, self.MASK), [[1 + 10 / 3, 3 + 2]])

    @pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.token_level])
    def test_without_token_rewards_it_is_the_presets_advantage(self, name):
        preset = PRESETS[name]
        rewards = tensor([1, 4, 4, -2], [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1])
        mask = torch.arange(5) < torch.tensor([[1, 5, 2, 3], [2, 2, 2, 2], [5, 4, 3, 1]]).unsqueeze(-1)
        advantages = preset.token_level(rewards, torch.zeros(3, 4, 5, dtype=torch.float64), mask, 0.3)
        expected = preset.advantages(rewards, 0.3).unsqueeze(-1).expand(3, 4, 5).masked_fill(~mask, 0.0)
        close(advantages, expected, 1e-9)
        assert (advantages[1] == 0).all() or not preset.needs_group

    @pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.token_level])
    def test_leading_dimensions_are_independent_estimates(self, name):
        function = PRESETS[name].token_level
        whole, to_go = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4, 5).double()
        mask = torch.rand(2, 3, 4, 5) < 0.7
        mask[..., 0] = True
        to_go = to_go.masked_fill(~mask, 0.0)
        both = function(whole, to_go, mask, 0.3)
        for index in range(2):
            close(both[index], function(whole[index], to_go[index], mask[index], 0.3))

    def test_every_preset_supports_token_rewards_or_explains_why_not(self):
        assert all(preset.supports_token_rewards != bool(preset.why_completion_level) for preset in PRESETS.values())

    def test_increments_start_at_the_score_of_the_empty_text(self):
        # 0.5 - 0.4, 0.2 - 0.5, 0.9 - 0.2 sum to 0.9 - 0.4. As a potential, the last token pays 0.2 back: the sum is -0.4.
        close(potential_differences(tensor(0.5, 0.2, 0.9), keep_total=True, empty=0.4), [0.1, -0.3, 0.7])
        close(potential_differences(tensor(0.5, 0.2, 0.9), keep_total=False, empty=0.4), [0.1, -0.3, -0.2])


def hearts(text: str) -> float:
    """Return 5, plus 1 per 爱, minus a tenth per character."""
    return text.count("爱") - 0.1 * len(text) + 5.0


WORLD = known_world()


def written(ids: Sequence[int]) -> str:
    """Decode the known world's tokens to other characters, so that the second one ends a sentence, not the text."""
    return "".join("爱。你!"[token] for token in ids)


def every_text() -> list[Completion]:
    """Return all 121 texts of the known world."""
    prompt = Prompt("toy", "")
    texts = []
    for tokens, mask in zip(WORLD.sequences.tokens, WORLD.sequences.mask, strict=True):
        ids = tuple(tokens[mask].tolist())
        texts.append(Completion(prompt, (), ids, written(ids), (0.0,) * len(ids), "stop"))
    return texts


@pytest.mark.parametrize("credit", ["token", "sentence"])
@pytest.mark.parametrize("name", ["reinforce", "reinforce_baseline"])
def test_the_expected_gradient_is_that_of_the_reward(name, credit):
    """The sum over all texts, weighted by probability, has no sampling error; rewards come from the real scorer."""
    completions = every_text()
    part = Part("hearts", reward_function("hearts", hearts), credit=credit)
    scores = Combination([part], decode=written).score(completions, step=1)
    whole, gained = split_rewards(scores)
    assert gained is not None
    lengths = torch.tensor([len(one.token_ids) for one in completions])
    advantages, _ = token_advantages(PRESETS[name], whole.view(1, -1), gained, lengths, 0.3)
    logits = WORLD.logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(
        exact.expected_reward(logits, WORLD.sequences, torch.from_numpy(scores.total)), logits
    )
    chance = exact.probabilities(WORLD.logits, WORLD.sequences)
    logprobs = WORLD.sequences.token_logprobs(logits)[WORLD.sequences.mask]
    weighted = chance.repeat_interleave(lengths) * advantages
    possible = weighted != 0
    (gradient,) = torch.autograd.grad((weighted[possible] * logprobs[possible]).sum(), logits)
    close(gradient.nan_to_num(0.0), expected.nan_to_num(0.0), 1e-12)
    # Rewards-to-go differ from token to token in most texts.
    rows = [row for row in torch.split(advantages, lengths.tolist()) if len(row) > 1]
    assert sum(bool((row != row[0]).any()) for row in rows) > len(rows) / 2


def test_a_reward_that_looks_ahead_is_biased():
    """Negative control: if a token is rewarded for the next one, the next one's reward-to-go lacks that reward."""
    completions = every_text()
    gained = torch.cat([
        tensor(*[1.0 * (following == 1) for following in (*one.token_ids[1:], 0)]) for one in completions
    ])  # fmt: skip
    lengths = torch.tensor([len(one.token_ids) for one in completions])
    advantages, _ = token_advantages(
        PRESETS["reinforce"], torch.zeros(1, len(completions)).double(), gained, lengths, 0.0
    )
    logits = WORLD.logits.clone().requires_grad_()
    totals = sum_by_sequence(gained, lengths)
    (expected,) = torch.autograd.grad(exact.expected_reward(logits, WORLD.sequences, totals), logits)
    chance = exact.probabilities(WORLD.logits, WORLD.sequences)
    logprobs = WORLD.sequences.token_logprobs(logits)[WORLD.sequences.mask]
    weighted = chance.repeat_interleave(lengths) * advantages
    possible = weighted != 0
    (gradient,) = torch.autograd.grad((weighted[possible] * logprobs[possible]).sum(), logits)
    assert float((gradient.nan_to_num(0.0) - expected.nan_to_num(0.0)).abs().max()) > 0.05


def test_a_critic_uses_token_rewards():
    # Discount and lambda are 1. Text 1: rewards 0.5 and 1 + 2, so returns 3.5 and 3. Text 2: -1 + 0.25.
    settings = CriticSection(discount=1.0, trace=1.0)
    lengths, gained = torch.tensor([2, 1]), tensor(0.5, 1.0, 0.25)
    _, returns = token_credit(tensor(2, -1), tensor(0, 0, 0), tensor(0.5, 1, 0.25), lengths, settings, gained)
    close(returns, [3.5, 3.0, -0.75])
    assert gained.tolist() == [0.5, 1.0, 0.25]


def group(*texts: str) -> Group:
    table = TablePolicy()
    prompt = Prompt("p", "")
    return Group(
        prompt,
        tuple(
            Completion(prompt, (), table.encode(text), text, (-1.0,) * len(text), "length", 0, index)
            for index, text in enumerate(texts)
        ),
    )


def step_learner(use: str, scorer: FixedScorer, groups: Sequence[Group], **keys: Any) -> Learner:
    learner = toy_learner(
        f"algorithm.use={use}", "sampling.prompts_per_step=1", "sampling.samples_per_prompt=2",
        *(f"{key}={value}" for key, value in keys.items()),
    )  # fmt: skip
    learner.policy.parameter.data = torch.zeros_like(learner.policy.parameter)
    learner.scorer, learner.sampler = scorer, FixedSampler(groups)
    return learner


class TestStep:
    SCORER = FixedScorer([1.0, 3.0], [[1.0, 3.0, 1.0], [2.0]])
    GROUPS = (group("我爱你", "。"),)

    def gradient(self, use: str, **keys: Any) -> torch.Tensor:
        learner = step_learner(use, self.SCORER, self.GROUPS, **keys)
        learner.optimizer = RecordingOptimizer(learner.policy)
        train_step(learner)
        return learner.optimizer.gradient["logits"]

    def by_hand(self, advantages: list[float]) -> torch.Tensor:
        """Return -1/N times the sum of A (one-hot - 1/4) of a uniform table, for the texts 我爱你 and 。."""
        gradient = torch.zeros(5, 4, dtype=torch.float64)
        for advantage, row, token in zip(advantages, [4, 0, 1, 4], [0, 1, 2, 3], strict=True):
            gradient[row] += advantage / 4
            gradient[row, token] -= advantage
        return gradient / 2

    @pytest.mark.parametrize(
        ("use", "advantages"),
        [
            # Rewards-to-go 5, 4, 1 and 2, plus the whole-text rewards 1 and 3.
            ("reinforce", [6, 5, 2, 5]),
            # The first step's baseline is 0.
            ("reinforce_baseline", [6, 5, 2, 5]),
            ("rloo", [1, 2, -1, -1]),
        ],
    )
    def test_the_gradient_by_hand(self, use, advantages):
        close(self.gradient(use, **{"optimizer.max_grad_norm": 1e9}), self.by_hand(advantages))

    def test_the_length_cost_by_hand(self):
        # The cost is 2 at the maximum of 4 tokens: three tokens cost 1.5, one costs 0.5.
        keys = {"optimizer.max_grad_norm": 1e9, "algorithm.length_cost": 2.0}
        close(self.gradient("reinforce", **keys), self.by_hand([4.5, 3.5, 0.5, 4.5]))

    @pytest.mark.parametrize("use", [name for name, preset in PRESETS.items() if preset.token_level])
    def test_microbatches_do_not_change_the_gradient(self, use):
        keys = {"optimizer.max_grad_norm": 1e9}
        whole = self.gradient(use, **keys)
        close(self.gradient(use, **keys, **{"optimizer.tokens_per_microbatch": 1}), whole, 1e-10)
        assert whole.abs().max() > 0

    def test_the_baseline_follows_the_mean_return(self):
        learner = step_learner("reinforce_baseline", self.SCORER, self.GROUPS)
        report = train_step(learner)
        # 1 + (5 + 4 + 1) / 3 and 3 + 2; the advantage in samples.jsonl is the mean over tokens.
        assert learner.credit.baseline.mean == pytest.approx((1 + 10 / 3 + 5) / 2)
        assert [row["advantage"] for row in report.samples] == pytest.approx([13 / 3, 5])
        assert [row["reward"] for row in report.samples] == [6.0, 5.0]

    def test_token_advantages_that_cancel_are_trained(self):
        # The token advantages of both texts are 1 and -1 and cancel.
        scorer = FixedScorer([0.0, 0.0], [[0.0, 1.0], [0.0, -1.0]])
        learner = step_learner("reinforce", scorer, [group("我爱", "你。")])
        scorer.token_rewards = replace(scorer.token_rewards, per_token=(np.array([2.0, -1.0]), np.array([-2.0, 1.0])))
        assert train_step(learner).metrics["trained"] == 1.0

    def test_an_algorithm_without_token_rewards_reports_it(self):
        learner = step_learner("gspo", self.SCORER, self.GROUPS)
        with pytest.raises(BurnishError, match="which this algorithm cannot use: its ratio is that of the whole text"):
            train_step(learner)

    def test_replaced_groups_bring_their_token_rewards(self):
        first, second = group("我爱", "你。"), group("我我", "爱爱")
        prompts = [Prompt("a", ""), Prompt("b", "")]
        flat = TokenRewards(np.zeros(4), tuple(np.array([value, 0.0]) for value in (0.0, 0.0, 2.0, 3.0)))
        total = np.array([0.0, 0.0, 1.0, 2.0])  # the first group has no spread
        fresh = TokenRewards(np.array([5.0, 6.0]), (np.array([7.0, 0.0]), np.array([8.0, 0.0])))
        answers = [Scores(total, {}, {}, token_rewards=flat), Scores(np.array([1.0, 2.0]), {}, {}, token_rewards=fresh)]
        draws = [[first, second], [second]]
        rollouts = collect(
            lambda chosen, seed: draws.pop(0), flag_completion, lambda some, flags: answers.pop(0), prompts, prompts,
            (0, 1), 1,
        )  # fmt: skip
        assert rollouts.scores.token_rewards is not None
        assert rollouts.scores.token_rewards.per_completion.tolist() == [5.0, 6.0, 0.0, 0.0]
        assert [row[0] for row in rollouts.scores.token_rewards.per_token] == [7.0, 8.0, 2.0, 3.0]
