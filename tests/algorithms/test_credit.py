"""Per-token credit, importance weights, reward shaping and masks, compared with values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.algorithms.credit_assignment import generalised_advantages, potential_differences, reward_to_go, whiten
from burnish.algorithms.importance import importance_weights
from burnish.algorithms.kl import adapted_coefficient
from burnish.algorithms.reward_shaping import (
    RunningMoments,
    length_cost,
    overlong_penalty,
    rank_in_group,
    standardise_by_moments,
)
from burnish.algorithms.top_p_mask import masked_logprobs, top_p_set
from burnish.exactness import world as exact
from burnish.policies.tabular import known_world


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


class TestCredit:
    def test_reward_to_go(self):
        # 1 + 2 + 4, 2 + 4, 4; with discount 1/2: 4, 2 + 2 = 4, 1 + 2 = 3.
        close(reward_to_go(tensor(1, 2, 4)), [7, 6, 4])
        close(reward_to_go(tensor(1, 2, 4), 0.5), [3, 4, 4])

    def test_generalised_advantages(self):
        # r = 0, 0, 1; V = 0.5, 0.6, 0.8. d = 0.6-0.5 = 0.1, 0.8-0.6 = 0.2, 1-0.8 = 0.2.
        # lambda 1/2: A_3 = 0.2, A_2 = 0.2 + 0.1 = 0.3, A_1 = 0.1 + 0.15 = 0.25. The second row ends after one token.
        rewards, values = tensor([0, 0, 1], [2, 0, 0]), tensor([0.5, 0.6, 0.8], [0.5, 0, 0])
        mask = torch.tensor([[True] * 3, [True, False, False]])
        close(generalised_advantages(rewards, values, mask, trace=0.5), [[0.25, 0.3, 0.2], [1.5, 0, 0]])
        # lambda 1 gives the return minus the value, lambda 0 the one-step error.
        close(generalised_advantages(rewards, values, mask, trace=1.0), [[0.5, 0.4, 0.2], [1.5, 0, 0]])
        close(generalised_advantages(rewards, values, mask, trace=0.0), [[0.1, 0.2, 0.2], [1.5, 0, 0]])

    def test_whitened(self):
        # Mean 2, variance (1 + 0 + 1)/2 = 1.
        close(whiten(tensor(1, 2, 3)), [-1, 0, 1], 1e-7)
        assert whiten(tensor(0.1, 0.1, 0.1)).tolist() == [0.0] * 3
        assert whiten(tensor(5)).tolist() == [0.0]

    def test_increments(self):
        # Scores of the prefixes: 0.5, 0.2, 0.9. Increments: 0.5, -0.3, 0.7. They add up to the whole text's score, 0.9.
        close(potential_differences(tensor(0.5, 0.2, 0.9), keep_total=True), [0.5, -0.3, 0.7])
        # A potential is 0 at the end, so the last token gives the 0.2 back and the increments add up to 0.
        shaping = potential_differences(tensor(0.5, 0.2, 0.9), keep_total=False)
        close(shaping, [0.5, -0.3, -0.2])
        assert float(shaping.sum()) == pytest.approx(0, abs=1e-15)

    def test_true_values_by_hand(self):
        # Values along 我爱你。: 0.24 at the start, 0.8 * 0.6 = 0.48 after 我, 0.6 after 我爱, 1 after 我爱你.
        world = known_world()
        (row,) = world.rewards.nonzero().flatten().tolist()
        values = exact.prefix_values(world.logits, world.sequences, world.rewards)
        close(values[row], [0.24, 0.48, 0.6, 1.0])
        # After any other first character, the reward can no longer be earned.
        others = (world.sequences.tokens[:, 0] != 0) & (world.sequences.lengths > 1)
        assert values[others][:, 1].abs().max() == 0

    def test_state_entropies_add_up_to_the_entropy_of_the_text(self):
        # Chain rule: the entropies of the visited states add up to the entropy of the whole text.
        world = known_world()
        chance = exact.probabilities(world.logits, world.sequences)
        found = exact.state_entropy(world.logits, world.sequences)
        assert float(found) == pytest.approx(float(torch.special.entr(chance).sum()), abs=1e-12)


class TestImportance:
    LENGTHS = torch.tensor([2, 1])
    NEW, OLD = tensor(-1.0, -1.0, -2.0), tensor(-1.0 - math.log(2), -1.0 - math.log(3), -2.0 + math.log(2))

    # Weights per token: 2, 3 | 1/2. Per sequence: 6, 6 | 1/2.
    @pytest.mark.parametrize(
        ("correction", "level", "expected"),
        [
            ("none", "token", [1, 1, 1]),
            ("truncate", "token", [2, 2.5, 0.5]),
            ("mask", "token", [2, 0, 0.5]),
            ("truncate", "sequence", [2.5, 2.5, 0.5]),
            ("mask", "sequence", [0, 0, 0.5]),
        ],
    )
    def test_weights(self, correction, level, expected):
        found = importance_weights(self.NEW, self.OLD, self.LENGTHS, correction=correction, level=level, cap=2.5)
        close(found, expected)

    def test_a_mask_of_both_sides(self):
        found = importance_weights(self.NEW, self.OLD, self.LENGTHS, correction="mask", cap=2.5, floor=0.6)
        close(found, [2, 0, 0])

    def test_a_weight_at_the_floor_is_kept(self):
        close(importance_weights(self.NEW, self.NEW, self.LENGTHS, correction="mask", floor=1.0), [1, 1, 1])

    def test_an_unknown_correction_is_refused(self):
        with pytest.raises(ValueError, match="none, truncate or mask"):
            importance_weights(self.NEW, self.OLD, self.LENGTHS, correction="clip")  # type: ignore[arg-type]


class TestShaping:
    def test_overlong_penalty(self):
        # Longest 10, buffer 4: no penalty up to 6 tokens, then 1/4 per token.
        close(overlong_penalty(torch.tensor([1, 6, 7, 9, 10]), 10, 0.4), [0, 0, -0.25, -0.75, -1])
        close(overlong_penalty(torch.tensor([10]), 10, 0.0), [0])

    def test_length_cost(self):
        close(length_cost(torch.tensor([1, 10]), 10), [-0.1, -1])

    def test_moments_merged_from_batches_equal_those_of_all_values(self):
        first, second = tensor(1, 2, 4), tensor(8, 0)
        found = RunningMoments().after(first).after(second)
        both = torch.cat([first, second])
        assert (found.count, found.mean) == (5, pytest.approx(3.0))
        assert found.deviation == pytest.approx(float(both.std()))
        assert RunningMoments().deviation == RunningMoments().after(tensor(3, 3)).deviation == 1.0

    def test_running_moments_use_earlier_rewards_only(self):
        # Earlier rewards 1 and 5: mean 3, std sqrt((4 + 4) / 1) = sqrt 8.
        close(
            standardise_by_moments(tensor([1, 3, 3]), RunningMoments().after(tensor(1, 5))), [[-2 / math.sqrt(8), 0, 0]]
        )
        close(standardise_by_moments(tensor(1, 3), RunningMoments()), [1, 3])

    def test_ranks(self):
        # 1 loses against both: -1. Each 3 wins one comparison and ties one: 1/2. Groups are ranked separately, and a
        # group of one has no rank.
        close(rank_in_group(tensor([1, 3, 3], [9, 8, 7])), [[-1, 0.5, 0.5], [1, 0, -1]])
        close(rank_in_group(tensor([7])), [[0]])
        # Compared with the definition, pair by pair, with ties; and a group too large for a table of all pairs.
        rewards = torch.randint(5, (3, 40), generator=torch.Generator().manual_seed(0)).double()
        pairs = (rewards[..., :, None] - rewards[..., None, :]).sign().sum(-1) / 39
        close(rank_in_group(rewards), pairs)
        assert rank_in_group(torch.arange(300_000.0)).tolist()[::299_999] == [-1, 1]


def test_adapted_coefficient():
    # Far above the target: e = 0.2, so b * 1.02; far below: b * 0.98; 10% above: b * 1.01; on target: b.
    assert adapted_coefficient(0.1, 60.0, target=6.0) == pytest.approx(0.102)
    assert adapted_coefficient(0.1, 0.0, target=6.0) == pytest.approx(0.098)
    assert adapted_coefficient(0.1, 6.6, target=6.0) == pytest.approx(0.101)
    assert adapted_coefficient(0.1, 6.0, target=6.0) == 0.1


class TestMask:
    LAGGED = tensor(0.5, 0.3, 0.15, 0.05).log()

    def test_the_smallest_set_that_reaches_top_p(self):
        assert top_p_set(self.LAGGED, 0.5).tolist() == [True, False, False, False]
        assert top_p_set(self.LAGGED, 0.79).tolist() == [True, True, False, False]
        assert top_p_set(self.LAGGED, 1.0).tolist() == [True] * 4

    def test_log_probabilities_are_renormalised_over_the_lagged_set(self):
        # The policy gives 0.1, 0.3, 0.4, 0.2, and the lagged set is the first two tokens: 1/4 and 3/4.
        policy = tensor(0.1, 0.3, 0.4, 0.2).log()
        found = masked_logprobs(policy, self.LAGGED, 0.79).exp()
        close(found, [0.25, 0.75, 0, 0])
        kept = masked_logprobs(policy, self.LAGGED, 0.79, always=torch.tensor(2)).exp()
        close(kept, [0.125, 0.375, 0.5, 0])

    def test_gradient_of_the_masked_policy(self):
        # d log p(1) / d logit: 1 - 3/4 for token 1, -1/4 for the other kept token, 0 for masked tokens.
        policy = tensor(0.1, 0.3, 0.4, 0.2).log().requires_grad_()
        masked_logprobs(policy, self.LAGGED, 0.79)[1].backward()
        close(policy.grad, [-0.25, 0.25, 0, 0])
