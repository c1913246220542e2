"""Advantages, losses, KL estimators and aggregation against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.advantages import group_normalised, leave_one_out, moving_baseline, reinforce
from burnish.algorithms.kl import ESTIMATORS, k1, k2, k3
from burnish.algorithms.losses import clip_fraction, clipped_ratio, log_likelihood
from burnish.algorithms.ops import sequence_weights, sum_by_sequence
from burnish.algorithms.presets import PRESETS


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected: torch.Tensor | list, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


# Two prompts, four samples each.
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)


class TestAdvantages:
    def test_reinforce_is_the_reward_whatever_the_baseline(self):
        close(reinforce(REWARDS, 0.7), REWARDS)

    def test_moving_baseline_takes_the_baseline_away(self):
        close(moving_baseline(REWARDS, 0.25), [[0.75, -0.25, -0.25, 2.75], [1.75] * 4])

    def test_leave_one_out(self):
        # Others' means of [1, 0, 0, 3]: (0+0+3)/3 = 1, (1+0+3)/3 = 4/3, 4/3, (1+0+0)/3 = 1/3.
        close(leave_one_out(REWARDS), [[0.0, -4 / 3, -4 / 3, 3 - 1 / 3], [0.0] * 4])

    def test_leave_one_out_is_the_deviation_from_the_mean_times_g_over_g_minus_1(self):
        # R_i - (S - R_i)/(G-1) = (G R_i - S)/(G-1) = G/(G-1) (R_i - S/G).
        close(leave_one_out(REWARDS), 4 / 3 * (REWARDS - REWARDS.mean(-1, keepdim=True)))

    def test_group_normalised(self):
        # [1, 0, 0, 3]: mean 1, deviations 0, -1, -1, 2; squares add to 6; divisor G-1 = 3: variance 2, std sqrt 2.
        scale = 1 / (math.sqrt(2) + 1e-4)
        close(group_normalised(REWARDS), [[0.0, -scale, -scale, 2 * scale], [0.0] * 4])

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-300, 1e15 + 0.1, -0.7])
    @pytest.mark.parametrize("group", [2, 3, 7, 10])
    def test_equal_rewards_give_exactly_zero(self, value, group):
        # The mean of seven times 0.1 is not 0.1; divided by (0 + 1e-4), or by a std of 1e-17, that would show.
        rewards = torch.full((3, group), value, dtype=torch.float64)
        assert group_normalised(rewards).tolist() == [[0.0] * group] * 3
        assert leave_one_out(rewards).abs().max() <= 1e-15 * max(1, abs(value)) * group

    def test_nearly_equal_rewards_are_not_taken_for_equal(self):
        found = group_normalised(tensor(1.0, 1.0 + 1e-3).view(1, 2))
        # Deviations -+5e-4, std 1e-3/sqrt 2.
        expected = 5e-4 / (1e-3 / math.sqrt(2) + 1e-4)
        close(found, [[-expected, expected]], 1e-9)

    @pytest.mark.parametrize("function", [leave_one_out, group_normalised])
    def test_a_group_of_one_is_refused(self, function):
        with pytest.raises(ValueError, match="at least 2 samples"):
            function(torch.ones(4, 1))

    def test_leading_dimensions_are_independent_estimates(self):
        stacked = torch.stack([REWARDS, 10 * REWARDS + 1])
        for function in (leave_one_out, group_normalised):
            close(function(stacked)[1], function(10 * REWARDS + 1))

    @given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=9))
    def test_leave_one_out_sums_to_zero_within_a_group(self, rewards):
        assert abs(float(leave_one_out(tensor(*rewards).view(1, -1)).sum())) < 1e-9

    @given(st.data())
    def test_permuting_a_group_permutes_its_advantages(self, data):
        rewards = data.draw(st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=8))
        order = data.draw(st.permutations(range(len(rewards))))
        values = tensor(*rewards).view(1, -1)
        for preset in PRESETS.values():
            # Sums in another order differ by rounding, which a tiny deviation divided by 1e-4 magnifies.
            close(preset.advantages(values[:, order], 0.3), preset.advantages(values, 0.3)[:, order], 1e-8)

    @given(st.floats(-50, 50), st.floats(0.5, 20))
    def test_what_shifting_and_scaling_rewards_does(self, shift, scale):
        close(leave_one_out(REWARDS + shift), leave_one_out(REWARDS), 1e-10)
        close(leave_one_out(REWARDS * scale), leave_one_out(REWARDS) * scale, 1e-10)
        # Up to epsilon, the normalised advantage does not know the reward's scale.
        close(group_normalised(REWARDS * scale + shift), group_normalised(REWARDS), 4e-4)


class TestLosses:
    def test_log_likelihood_and_its_gradient(self):
        logprobs = tensor(-0.5, -2.0).requires_grad_()
        loss = log_likelihood(logprobs, logprobs.detach(), tensor(3.0, -4.0))
        close(loss.detach(), [1.5, -8.0])
        loss.sum().backward()
        close(logprobs.grad, [-3.0, 4.0])

    # -min(r A, clip(r, 0.8, 1.2) A), and d/dlogp = -r A where the unclipped term is the smaller (or equal), else 0.
    @pytest.mark.parametrize(
        ("ratio", "advantage", "value", "slope"),
        [
            (1.0, 2.0, -2.0, -2.0),
            (1.1, 2.0, -2.2, -2.2),
            (1.5, 2.0, -2.4, 0.0),  # clipped: 1.2 * 2; a good action is probable enough already
            (0.5, 2.0, -1.0, -1.0),  # min(1, 1.6) = 1: a good action that lost probability may win it back
            (1.5, -2.0, 3.0, 3.0),  # min(-3, -2.4) = -3: a bad action that won probability is pushed down
            (0.5, -2.0, 1.6, 0.0),  # min(-1, -1.6) = -1.6: pushed down far enough already
            (0.9, -2.0, 1.8, 1.8),
            (1.5, 0.0, 0.0, 0.0),
        ],
    )
    def test_clipped_ratio(self, ratio, advantage, value, slope):
        old = tensor(-1.0)
        logprobs = (old + math.log(ratio)).requires_grad_()
        loss = clipped_ratio(logprobs, old, tensor(advantage))
        close(loss.detach(), [value])
        loss.backward()
        close(logprobs.grad, [slope])

    def test_the_two_clips_are_set_apart(self):
        old = tensor(0.0, 0.0)
        logprobs = tensor(math.log(1.27), math.log(0.85))
        # Above 1.27 < 1.28: not clipped. Below 0.85 < 0.9: min(-0.85, -0.9) = -0.9.
        close(clipped_ratio(logprobs, old, tensor(1.0, -1.0), clip_low=0.1, clip_high=0.28), [-1.27, 0.9])

    def test_on_the_policys_own_samples_the_gradient_is_that_of_log_likelihood(self):
        advantages = tensor(1.5, -0.5, 0.0)
        slopes = []
        for loss in (log_likelihood, clipped_ratio):
            logprobs = tensor(-1.0, -2.0, -3.0).requires_grad_()
            loss(logprobs, logprobs.detach(), advantages).sum().backward()
            slopes.append(logprobs.grad)
        close(slopes[0], -advantages)
        close(slopes[1], slopes[0])

    def test_clip_fraction_counts_the_tokens_without_gradient(self):
        # Of the cases above: (1.5, +) and (0.5, -) are cut; (0.5, +), (1.5, -), (1.1, +) are not.
        ratios = tensor(1.5, 0.5, 0.5, 1.5, 1.1)
        found = clip_fraction(ratios.log(), torch.zeros(5, dtype=torch.float64), tensor(1, -1, 1, -1, 1))
        assert float(found) == pytest.approx(0.4, abs=1e-15)


class TestKL:
    def test_values(self):
        # d = log p - log q. For d = 0.5: k1 = 0.5, k2 = 0.125, k3 = e^-0.5 - 1 + 0.5 = 0.1065306597...
        # For d = -1: k1 = -1, k2 = 0.5, k3 = e - 1 - 1 = 0.7182818284...
        logprobs, reference = tensor(-1.0, -3.0), tensor(-1.5, -2.0)
        close(k1(logprobs, reference), [0.5, -1.0])
        close(k2(logprobs, reference), [0.125, 0.5])
        close(k3(logprobs, reference), [0.10653065971263342, 0.7182818284590452])

    def test_k3_keeps_its_digits_near_zero(self):
        # exp(-d) - 1 + d = d^2/2 - d^3/6 + ...: for d = 1e-6, 5e-13 to seven digits; exp(-d) - 1 + d as written has two.
        found = float(k3(tensor(1e-6), tensor(0.0)))
        assert found == pytest.approx(5e-13, rel=1e-3)

    def test_means_over_a_known_distribution(self):
        # KL(p||q) = 0.8 ln(0.8/0.5) + 0.2 ln(0.2/0.5) = 0.19274475702175753.
        p, q = tensor(0.8, 0.2), tensor(0.5, 0.5)
        true = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
        assert float(p @ k1(p.log(), q.log())) == pytest.approx(true, abs=1e-15)
        assert float(p @ k3(p.log(), q.log())) == pytest.approx(true, abs=1e-15)
        # k2 is biased: 0.8 ln(1.6)^2/2 + 0.2 ln(0.4)^2/2 = 0.1723...
        assert float(p @ k2(p.log(), q.log())) == pytest.approx(0.4 * math.log(1.6) ** 2 + 0.1 * math.log(0.4) ** 2)

    @given(st.floats(-30, 0), st.floats(-30, 0))
    def test_k2_and_k3_are_never_negative_and_all_are_zero_on_equal_policies(self, first, second):
        assert float(k2(tensor(first), tensor(second))) >= 0
        assert float(k3(tensor(first), tensor(second))) >= 0
        assert all(float(estimator(tensor(first), tensor(first))) == 0 for estimator in ESTIMATORS.values())


class TestAggregation:
    LENGTHS = torch.tensor([1, 3, 4])

    @pytest.mark.parametrize(
        ("aggregation", "weights"),
        [
            ("sequence_sum", [1 / 3, 1 / 3, 1 / 3]),
            ("sequence_mean", [1 / 3, 1 / 9, 1 / 12]),  # 1/(N |o_i|)
            ("token_mean", [1 / 8, 1 / 8, 1 / 8]),  # 1/(1 + 3 + 4)
        ],
    )
    def test_weights(self, aggregation, weights):
        close(sequence_weights(self.LENGTHS, aggregation), weights)

    def test_what_the_weights_add_up_to(self):
        total = {name: float((sequence_weights(self.LENGTHS, name) * self.LENGTHS).sum())
                 for name in ("sequence_sum", "sequence_mean", "token_mean")}  # fmt: skip
        # The sum of a constant loss of 1: mean length, 1, 1.
        assert total == pytest.approx({"sequence_sum": 8 / 3, "sequence_mean": 1.0, "token_mean": 1.0})

    def test_leading_dimensions(self):
        lengths = torch.tensor([[1, 3], [2, 2]])
        close(sequence_weights(lengths, "token_mean"), [[0.25, 0.25], [0.25, 0.25]])
        close(sequence_weights(lengths, "sequence_mean"), [[0.5, 1 / 6], [0.25, 0.25]])

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="sequence_sum, sequence_mean or token_mean"):
            sequence_weights(self.LENGTHS, "mean")

    def test_sum_by_sequence(self):
        values = tensor(5.0, 1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0)
        assert sum_by_sequence(values, self.LENGTHS).tolist() == [5.0, 6.0, -4.0]

    def test_sum_by_sequence_with_an_empty_sequence(self):
        assert sum_by_sequence(tensor(2.0, 3.0), torch.tensor([1, 0, 1])).tolist() == [2.0, 0.0, 3.0]


def test_presets_are_what_their_papers_say():
    assert {name: (p.advantages, p.loss, p.aggregation, p.needs_group, p.unbiased) for name, p in PRESETS.items()} == {
        "reinforce": (reinforce, log_likelihood, "sequence_sum", False, True),
        "reinforce_baseline": (moving_baseline, log_likelihood, "sequence_sum", False, True),
        "rloo": (leave_one_out, log_likelihood, "sequence_sum", True, True),
        "grpo": (group_normalised, clipped_ratio, "sequence_mean", True, False),
    }
