"""Advantages, losses, KL estimators and aggregation, compared with values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.advantages import (
    batch_normalised,
    best_and_worst,
    group_centred,
    group_normalised,
    leave_one_out,
    moving_baseline,
    reinforce,
)
from burnish.algorithms.kl import KL_ESTIMATORS, k1, k2, k3
from burnish.algorithms.losses import (
    RatioLimits,
    clipped_ratio,
    clipped_weight,
    log_likelihood,
    soft_gate,
    tokens_with_clipped_gradient,
    tokens_with_clipped_weight,
    value_loss,
)
from burnish.algorithms.ops import log_ratio, pad_by_sequence, sequence_weights, sum_by_sequence
from burnish.algorithms.presets import PRESETS


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected: torch.Tensor | list, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


# Two prompts, four samples each.
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)


class TestAdvantages:
    def test_reinforce_ignores_the_baseline(self):
        close(reinforce(REWARDS, 0.7), REWARDS)

    def test_moving_baseline_is_subtracted(self):
        close(moving_baseline(REWARDS, 0.25), [[0.75, -0.25, -0.25, 2.75], [1.75] * 4])

    def test_leave_one_out(self):
        # Means of the other three of [1, 0, 0, 3]: (0+0+3)/3 = 1, (1+0+3)/3 = 4/3, 4/3, (1+0+0)/3 = 1/3.
        close(leave_one_out(REWARDS), [[0.0, -4 / 3, -4 / 3, 3 - 1 / 3], [0.0] * 4])

    def test_leave_one_out_is_the_deviation_from_the_mean_times_g_over_g_minus_1(self):
        # R_i - (S - R_i)/(G-1) = (G R_i - S)/(G-1) = G/(G-1) (R_i - S/G).
        close(leave_one_out(REWARDS), 4 / 3 * (REWARDS - REWARDS.mean(-1, keepdim=True)))

    def test_group_normalised(self):
        # [1, 0, 0, 3]: mean 1, deviations 0, -1, -1, 2; squares add to 6; divisor G-1 = 3: variance 2, std sqrt 2.
        scale = 1 / (math.sqrt(2) + 1e-4)
        close(group_normalised(REWARDS), [[0.0, -scale, -scale, 2 * scale], [0.0] * 4])

    def test_group_centred(self):
        close(group_centred(REWARDS), [[0.0, -1.0, -1.0, 2.0], [0.0] * 4])
        close(group_centred(REWARDS), 3 / 4 * leave_one_out(REWARDS))

    def test_batch_normalised(self):
        # All eight: mean 12/8 = 1.5; deviations -.5, -1.5, -1.5, 1.5, .5 four times; squares .25 + 6.75 + 1 = 8; 8/7.
        scale = 1 / (math.sqrt(8 / 7) + 1e-4)
        expected = [[-0.5 * scale, -1.5 * scale, -1.5 * scale, 1.5 * scale], [0.5 * scale] * 4]
        close(batch_normalised(REWARDS), expected)
        assert batch_normalised(torch.full((2, 3), 0.1, dtype=torch.float64)).tolist() == [[0.0] * 3] * 2
        with pytest.raises(ValueError, match="at least 2 samples"):
            batch_normalised(torch.ones(1, 1))

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-300, 1e15 + 0.1, -0.7])
    @pytest.mark.parametrize("group", [2, 3, 7, 10])
    def test_equal_rewards_give_exactly_zero(self, value, group):
        # In floating point the mean of seven 0.1s is not 0.1. Divided by (0 + 1e-4), or by a std of 1e-17, the
        # difference would show.
        rewards = torch.full((3, group), value, dtype=torch.float64)
        assert group_normalised(rewards).tolist() == [[0.0] * group] * 3
        assert group_centred(rewards).tolist() == [[0.0] * group] * 3
        assert leave_one_out(rewards).abs().max() <= 1e-15 * max(1, abs(value)) * group

    def test_nearly_equal_rewards_keep_their_advantages(self):
        found = group_normalised(tensor(1.0, 1.0 + 1e-3).view(1, 2))
        # Deviations -+5e-4, std 1e-3/sqrt 2.
        expected = 5e-4 / (1e-3 / math.sqrt(2) + 1e-4)
        close(found, [[-expected, expected]], 1e-9)

    @pytest.mark.parametrize("function", [leave_one_out, group_centred, group_normalised])
    def test_a_group_of_one_is_refused(self, function):
        with pytest.raises(ValueError, match="at least 2 samples"):
            function(torch.ones(4, 1))

    def test_leading_dimensions_are_independent_estimates(self):
        stacked = torch.stack([REWARDS, 10 * REWARDS + 1])
        for function in (leave_one_out, group_centred, group_normalised, batch_normalised):
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
            if preset.paired and len(set(rewards)) < len(rewards):
                continue  # among equal rewards the first one is paired, so the order matters
            # A sum in another order rounds differently, and dividing a tiny deviation by 1e-4 magnifies that.
            close(preset.advantages(values[:, order], 0.3), preset.advantages(values, 0.3)[:, order], 1e-8)

    @given(st.floats(-50, 50), st.floats(0.5, 20))
    def test_shifted_and_scaled_rewards(self, shift, scale):
        close(leave_one_out(REWARDS + shift), leave_one_out(REWARDS), 1e-10)
        close(leave_one_out(REWARDS * scale), leave_one_out(REWARDS) * scale, 1e-10)
        # Up to epsilon, the normalised advantage does not depend on the scale of the rewards.
        close(group_normalised(REWARDS * scale + shift), group_normalised(REWARDS), 4e-4)


class TestLosses:
    def test_log_likelihood_and_its_gradient(self):
        logprobs = tensor(-0.5, -2.0).requires_grad_()
        loss = log_likelihood(logprobs, logprobs - logprobs.detach(), tensor(3.0, -4.0))
        close(loss.detach(), [1.5, -8.0])
        loss.sum().backward()
        close(logprobs.grad, [-3.0, 4.0])

    # -min(r A, clip(r, 0.8, 1.2) A), and d/dlogp = -r A where the unclipped term is the smaller (or equal), else 0.
    @pytest.mark.parametrize(
        ("ratio", "advantage", "value", "slope"),
        [
            (1.0, 2.0, -2.0, -2.0),
            (1.1, 2.0, -2.2, -2.2),
            (1.5, 2.0, -2.4, 0.0),  # clipped: 1.2 * 2; a good action that is already more probable
            (0.5, 2.0, -1.0, -1.0),  # min(1, 1.6) = 1: a good action that became less probable is pushed up
            (1.5, -2.0, 3.0, 3.0),  # min(-3, -2.4) = -3: a bad action that became more probable is pushed down
            (0.5, -2.0, 1.6, 0.0),  # min(-1, -1.6) = -1.6: clipped; a bad action that is already less probable
            (0.9, -2.0, 1.8, 1.8),
            (1.5, 0.0, 0.0, 0.0),
        ],
    )
    def test_clipped_ratio(self, ratio, advantage, value, slope):
        old = tensor(-1.0)
        logprobs = (old + math.log(ratio)).requires_grad_()
        loss = clipped_ratio(logprobs, logprobs - old, tensor(advantage))
        close(loss.detach(), [value])
        loss.backward()
        close(logprobs.grad, [slope])

    def test_lower_and_upper_clip_are_separate(self):
        logprobs = tensor(math.log(1.27), math.log(0.85))
        # Above 1.27 < 1.28: not clipped. Below 0.85 < 0.9: min(-0.85, -0.9) = -0.9.
        limits = RatioLimits(low=0.1, high=0.28)
        close(clipped_ratio(logprobs, logprobs, tensor(1.0, -1.0), limits), [-1.27, 0.9])

    def test_on_policy_gradient_equals_that_of_log_likelihood(self):
        advantages = tensor(1.5, -0.5, 0.0)
        slopes = []
        for preset in PRESETS.values():
            logprobs = tensor(-1.0, -2.0, -3.0).requires_grad_()
            ratio = log_ratio(logprobs, logprobs.detach(), torch.tensor([1, 1, 1]), preset.ratio or "token")
            preset.loss(logprobs, ratio, advantages, preset.limits).sum().backward()
            slopes.append(logprobs.grad)
        for slope in slopes:
            close(slope, -advantages)

    def test_tokens_reported_as_clipped_have_no_gradient(self):
        # The cases above: (1.5, +) is clipped above, (0.5, -) below; (0.5, +), (1.5, -), (1.1, +) are not clipped.
        ratios = tensor(1.5, 0.5, 0.5, 1.5, 1.1)
        low, high = tokens_with_clipped_gradient(ratios.log(), tensor(1, -1, 1, -1, 1), RatioLimits())
        assert low.tolist() == [False, True, False, False, False]
        assert high.tolist() == [True, False, False, False, False]

    # Dual clip, c = 3: for A < 0 the gain is max(min(r A, clip(r) A), 3 A), flat beyond r = 3.
    @pytest.mark.parametrize(
        ("ratio", "advantage", "value", "slope"),
        [
            (5.0, -2.0, 6.0, 0.0),  # min(-10, -2.4) = -10, max(-10, -6) = -6
            (2.0, -2.0, 4.0, 4.0),  # min(-4, -2.4) = -4 > -6: the dual clip does not act
            (5.0, 2.0, -2.4, 0.0),  # A > 0: the plain clip, 1.2 * 2
        ],
    )
    def test_dual_clip(self, ratio, advantage, value, slope):
        logprobs = tensor(math.log(ratio)).requires_grad_()
        loss = clipped_ratio(logprobs, logprobs, tensor(advantage), RatioLimits(dual=3.0))
        close(loss.detach(), [value])
        loss.backward()
        close(logprobs.grad, [slope])

    def test_clipped_weight(self):
        # -sg(min(r, 5)) A log pi. r = 2: -2 * 3 * -0.5 = 3, slope -6. r = 8, clipped to 5: -5 * -1 * -1 = -5, slope 5.
        logprobs = tensor(-0.5, -1.0).requires_grad_()
        ratio = tensor(2.0, 8.0).log()
        limits = PRESETS["cispo"].limits
        loss = clipped_weight(logprobs, ratio, tensor(3.0, -1.0), limits)
        close(loss.detach(), [3.0, -5.0])
        loss.sum().backward()
        close(logprobs.grad, [-6.0, 5.0])
        low, high = tokens_with_clipped_weight(ratio, tensor(3.0, -1.0), limits)
        assert (low.tolist(), high.tolist()) == ([False, False], [False, True])

    def test_soft_gate(self):
        # A = 2, tau = 1, r = 1 + ln 3: -(4/1) sigmoid(ln 3) 2 = -8 * 3/4 = -6; slope in log pi: -4 s(1-s) r A = -1.5 r.
        # A = -2, tau = 1.05, r = 1: -(4/1.05) (1/2) (-2) = 4/1.05; slope 4 * 1/4 * 2 = 2.
        ratio = 1 + math.log(3)
        logprobs = tensor(math.log(ratio), 0.0).requires_grad_()
        loss = soft_gate(logprobs, logprobs, tensor(2.0, -2.0))
        close(loss.detach(), [-6.0, 4 / 1.05])
        loss.sum().backward()
        close(logprobs.grad, [-1.5 * ratio, 2.0])

    def test_value_loss(self):
        # V_old 1, clip 0.2. V 1.5, R 2: plain 0.25; clipped V 1.2, 0.64 is larger: 0.32.
        # V 1.5, R 1: plain 0.25; clipped 0.04: 0.125. V 1.1, R 2: within the clip, 0.81 / 2.
        values, old, returns = tensor(1.5, 1.5, 1.1), tensor(1.0, 1.0, 1.0), tensor(2.0, 1.0, 2.0)
        close(value_loss(values, old, returns), [0.32, 0.125, 0.405])
        close(value_loss(values, old, returns, clip=0), [0.125, 0.125, 0.405])


class TestRatio:
    LENGTHS = torch.tensor([2, 1])

    def test_levels(self):
        # Differences 0.1, 0.3 | -0.5. "token" keeps them; the means are 0.2, 0.2 | -0.5, the sums 0.4, 0.4 | -0.5.
        new, old = tensor(-1.0, -1.0, -2.0), tensor(-1.1, -1.3, -1.5)
        close(log_ratio(new, old, self.LENGTHS), [0.1, 0.3, -0.5])
        close(log_ratio(new, old, self.LENGTHS, "sequence_mean"), [0.2, 0.2, -0.5])
        close(log_ratio(new, old, self.LENGTHS, "sequence_sum"), [0.4, 0.4, -0.5])

    def test_gspo_by_hand(self):
        # s = exp(0.2) = 1.2214 > 1 + 4e-4 with A = 1: clipped at 1.0004, no gradient. s = exp(-0.5), A = 1: min is s.
        new = tensor(-1.0, -1.0, -2.0).requires_grad_()
        ratio = log_ratio(new, tensor(-1.1, -1.3, -1.5), self.LENGTHS, "sequence_mean")
        loss = clipped_ratio(new, ratio, tensor(1.0, 1.0, 1.0), PRESETS["gspo"].limits)
        close(loss.detach(), [-1.0004, -1.0004, -math.exp(-0.5)])
        weights = sequence_weights(self.LENGTHS, "sequence_mean").repeat_interleave(self.LENGTHS)
        (weights * loss).sum().backward()
        # Half of d -s / d log pi = -s for the one token of the second text.
        close(new.grad, [0.0, 0.0, -math.exp(-0.5) / 2])

    def test_log_ratio_is_bounded(self):
        assert log_ratio(tensor(0.0), tensor(-900.0), torch.tensor([1])).exp().isfinite().all()

    def test_padding_round_trip(self):
        rows, mask = pad_by_sequence(tensor(1.0, 2.0, 3.0), self.LENGTHS)
        assert rows.tolist() == [[1.0, 2.0], [3.0, 0.0]]
        assert rows[mask].tolist() == [1.0, 2.0, 3.0]


class TestKL:
    def test_values(self):
        # d = log p - log q. For d = 0.5: k1 = 0.5, k2 = 0.125, k3 = e^-0.5 - 1 + 0.5 = 0.1065306597...
        # For d = -1: k1 = -1, k2 = 0.5, k3 = e - 1 - 1 = 0.7182818284...
        logprobs, reference = tensor(-1.0, -3.0), tensor(-1.5, -2.0)
        close(k1(logprobs, reference), [0.5, -1.0])
        close(k2(logprobs, reference), [0.125, 0.5])
        close(k3(logprobs, reference), [0.10653065971263342, 0.7182818284590452])

    def test_k3_keeps_its_digits_near_zero(self):
        # exp(-d) - 1 + d = d^2/2 - d^3/6 + ... is 5e-13 to seven digits for d = 1e-6; as written, it keeps two.
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
        assert all(float(estimator(tensor(first), tensor(first))) == 0 for estimator in KL_ESTIMATORS.values())


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

    def test_constant_length(self):
        # 1/(3 * 10) for any lengths.
        close(sequence_weights(self.LENGTHS, "constant_length", 10), [1 / 30] * 3)
        with pytest.raises(ValueError, match="longest"):
            sequence_weights(self.LENGTHS, "constant_length")

    def test_weighted_sum_of_a_constant_loss(self):
        total = {name: float((sequence_weights(self.LENGTHS, name) * self.LENGTHS).sum())
                 for name in ("sequence_sum", "sequence_mean", "token_mean")}  # fmt: skip
        # A constant loss of 1 adds up to the mean length, 1 and 1.
        assert total == pytest.approx({"sequence_sum": 8 / 3, "sequence_mean": 1.0, "token_mean": 1.0})

    def test_leading_dimensions(self):
        lengths = torch.tensor([[1, 3], [2, 2]])
        close(sequence_weights(lengths, "token_mean"), [[0.25, 0.25], [0.25, 0.25]])
        close(sequence_weights(lengths, "sequence_mean"), [[0.5, 1 / 6], [0.25, 0.25]])

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="sequence_mean, token_mean or constant_length"):
            sequence_weights(self.LENGTHS, "mean")

    def test_sum_by_sequence(self):
        values = tensor(5.0, 1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0)
        assert sum_by_sequence(values, self.LENGTHS).tolist() == [5.0, 6.0, -4.0]

    def test_sum_by_sequence_with_an_empty_sequence(self):
        assert sum_by_sequence(tensor(2.0, 3.0), torch.tensor([1, 0, 1])).tolist() == [2.0, 0.0, 3.0]


def test_presets_match_their_papers():
    found = {
        name: (p.advantages, p.loss, p.aggregation, p.needs_group, p.unbiased, p.ratio, p.limits.low, p.limits.high)
        for name, p in PRESETS.items()
    }
    assert found == {
        "reinforce": (reinforce, log_likelihood, "sequence_sum", False, True, None, 0.2, 0.2),
        "reinforce_baseline": (moving_baseline, log_likelihood, "sequence_sum", False, True, None, 0.2, 0.2),
        "reinforce_pp": (batch_normalised, clipped_ratio, "token_mean", False, False, "token", 0.2, 0.2),
        "rloo": (leave_one_out, log_likelihood, "sequence_sum", True, True, None, 0.2, 0.2),
        "grpo": (group_normalised, clipped_ratio, "sequence_mean", True, False, "token", 0.2, 0.2),
        "dr_grpo": (group_centred, clipped_ratio, "constant_length", True, False, "token", 0.2, 0.2),
        "dapo": (group_normalised, clipped_ratio, "token_mean", True, False, "token", 0.2, 0.28),
        "ppo": (reinforce, clipped_ratio, "token_mean", False, False, "token", 0.2, 0.2),
        "gdpo": (batch_normalised, clipped_ratio, "sequence_mean", True, False, "token", 0.2, 0.2),
        "gspo": (group_normalised, clipped_ratio, "sequence_mean", True, False, "sequence_mean", 3e-4, 4e-4),
        "cispo": (group_normalised, clipped_weight, "token_mean", True, False, "token", 1.0, 4.0),
        "sapo": (group_normalised, soft_gate, "sequence_mean", True, False, "token", 0.2, 0.2),
        "online_dpo": (best_and_worst, log_likelihood, "sequence_sum", True, False, None, 0.2, 0.2),
    }
    assert {name: p.refills for name, p in PRESETS.items() if p.refills} == {"dapo": 3}
    assert all(p.why for p in PRESETS.values() if not p.unbiased)
