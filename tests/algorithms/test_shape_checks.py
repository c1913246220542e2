"""Shape checks: wrong shapes that would broadcast to a wrong result raise an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish.algorithms import (
    advantages,
    credit_assignment,
    importance,
    kl,
    losses,
    ops,
    preference,
    presets,
    reward_shaping,
    token_level_advantages,
    top_p_mask,
)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


# P = G = 2, so that each wrong shape below would broadcast.
FLAT, GROUPED, PADDED, LENGTHS = zeros(4), zeros(2, 2), zeros(2, 2, 3), torch.tensor([2, 2])
LOSSES = (losses.log_likelihood, losses.clipped_ratio, losses.clipped_weight, losses.soft_gate)
CLIPPED = (losses.tokens_with_clipped_gradient, losses.tokens_with_clipped_weight, losses.no_clipped_tokens)
TOKEN_LEVEL = [
    getattr(token_level_advantages, f"token_{name}")
    for name in (
        "reinforce", "moving_baseline", "leave_one_out", "group_centred", "group_normalised", "batch_normalised",
    )
]  # fmt: skip


def refused(message: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(ValueError) as error:
        function(*arguments, **options)
    assert str(error.value) == message


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=presets.PRESETS)
def test_advantages_need_p_by_g_rewards(preset: presets.Preset) -> None:
    refused("rewards has shape [2], expected [..., P, G]", preset.advantages, zeros(2))


def test_a_baseline_is_one_number_or_one_per_prompt() -> None:
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    per_prompt = torch.tensor([1.0, 3.0])
    refused("baseline has shape [2], expected [P, 1] = [2, 1]", advantages.moving_baseline, rewards, per_prompt)
    assert advantages.moving_baseline(rewards, per_prompt[:, None]).tolist() == [[0, 1], [0, 1]]
    assert advantages.moving_baseline(rewards, torch.tensor(1.0)).tolist() == [[0, 1], [2, 3]]
    refused(
        "baseline has shape [2], expected [P, 1] = [2, 1]",
        token_level_advantages.token_moving_baseline, GROUPED, PADDED, PADDED.bool(), per_prompt,
    )  # fmt: skip


def test_pairs() -> None:
    refused("rewards has shape [2], expected [..., P, G]", advantages.best_and_worst, zeros(2))
    refused("advantages has shape [2], expected [..., P, G]", advantages.scale_as_dpo, zeros(2), zeros(2), 0.1)
    refused(
        "ratios has shape [2], expected the shape of advantages = [2, 2]",
        advantages.scale_as_dpo, GROUPED, zeros(2), 0.1,
    )  # fmt: skip


@pytest.mark.parametrize("function", [*TOKEN_LEVEL, token_level_advantages.mean_return])
def test_token_level_advantages(function: Callable[..., Tensor]) -> None:
    mask = PADDED.bool()
    refused("whole has shape [2], expected [..., P, G]", function, zeros(2), PADDED, mask)
    refused("to_go has shape [2, 2], expected [..., P, G, L] = [2, 2, any]", function, GROUPED, GROUPED, mask)
    refused("mask has shape [2, 3], expected [..., P, G, L] = [2, 2, 3]", function, GROUPED, PADDED, mask[0])


def test_credit_assignment() -> None:
    rows, mask = zeros(2, 3), zeros(2, 3).bool()
    refused("rewards has shape [], expected [..., L]", credit_assignment.reward_to_go, zeros())
    refused("potentials has shape [], expected [..., L]", credit_assignment.potential_differences, zeros(),
            keep_total=True)  # fmt: skip
    refused("values has shape [], expected [..., T]", credit_assignment.whiten, zeros())
    refused("mask has shape [3], expected the shape of values = [2, 3]", credit_assignment.whiten, rows, mask[0])
    gae = credit_assignment.generalised_advantages
    refused("values has shape [3], expected the shape of rewards = [2, 3]", gae, rows, rows[0], mask)
    refused("mask has shape [3], expected the shape of rewards = [2, 3]", gae, rows, rows, mask[0])


@pytest.mark.parametrize("function", LOSSES)
def test_policy_losses_are_flat(function: Callable[..., Tensor]) -> None:
    refused("logprobs has shape [2, 2], expected a flat tensor = [any]", function, GROUPED, GROUPED, GROUPED)
    refused("log_ratio has shape [1], expected the shape of logprobs = [4]", function, FLAT, zeros(1), FLAT)
    refused("advantages has shape [4, 1], expected the shape of logprobs = [4]", function, FLAT, FLAT, zeros(4, 1))


@pytest.mark.parametrize("function", CLIPPED)
def test_clipped_tokens_are_flat(function: Callable[..., Any]) -> None:
    limits = losses.DEFAULT_LIMITS
    refused("advantages has shape [1], expected the shape of log_ratio = [4]", function, FLAT, zeros(1), limits)


def test_value_loss_is_flat() -> None:
    refused("returns has shape [1], expected the shape of values = [4]", losses.value_loss, FLAT, FLAT, zeros(1))


@pytest.mark.parametrize("estimator", kl.KL_ESTIMATORS.values())
def test_kl_needs_equal_shapes(estimator: Callable[..., Tensor]) -> None:
    refused("reference_logprobs has shape [1], expected the shape of logprobs = [4]", estimator, FLAT, zeros(1))


def test_ratios_and_sums() -> None:
    refused("old_logprobs has shape [1], expected the shape of logprobs = [4]", ops.log_ratio, FLAT, zeros(1), LENGTHS)
    refused("lengths has shape [1, 2], expected a flat tensor = [any]", ops.log_ratio, FLAT, FLAT, LENGTHS[None])
    refused("lengths has shape [], expected [..., N]", ops.sequence_weights, LENGTHS[0], "sequence_sum")
    refused("lengths has shape [1, 2], expected a flat tensor = [any]", ops.owners, LENGTHS[None])
    refused("values has shape [2, 2], expected a flat tensor = [any]", ops.sum_by_sequence, GROUPED, LENGTHS)
    refused("values has shape [2, 2], expected a flat tensor = [any]", ops.pad_by_sequence, GROUPED, LENGTHS)
    refused(
        "sampler_logprobs has shape [1], expected the shape of logprobs = [4]",
        importance.importance_weights, FLAT, zeros(1), LENGTHS, correction="mask",
    )  # fmt: skip


def test_preferences_are_flat() -> None:
    message = "rejected has shape [1], expected the shape of chosen = [4]"
    refused(message, preference.bradley_terry_loss, FLAT, zeros(1))
    refused(message, preference.dpo_loss, FLAT, zeros(1), 0.1)
    refused(message, preference.ipo_loss, FLAT, zeros(1), 0.1)
    refused("margin has shape [4, 1], expected the shape of chosen = [4]", preference.bradley_terry_loss, FLAT, FLAT,
            zeros(4, 1))  # fmt: skip
    refused("desirable has shape [1], expected the shape of ratios = [4]", preference.kto_loss, FLAT,
            zeros(1).bool(), 0.0, 0.1)  # fmt: skip
    refused("mismatched has shape [2, 2], expected a flat tensor = [any]", preference.kto_reference_point, GROUPED)


def test_shaping_and_masks() -> None:
    refused("lengths has shape [1, 2], expected a flat tensor = [any]", reward_shaping.length_cost, LENGTHS[None], 4)
    refused("lengths has shape [1, 2], expected a flat tensor = [any]", reward_shaping.overlong_penalty,
            LENGTHS[None], 4, 0.2)  # fmt: skip
    refused("rewards has shape [], expected [..., G]", reward_shaping.rank_in_group, zeros())
    refused("rewards has shape [], expected [..., N]", reward_shaping.standardise, zeros())
    refused("logits has shape [], expected [..., V]", top_p_mask.top_p_set, zeros(), 0.9)
    refused("lagged_logits has shape [2], expected the shape of logits = [2, 2]", top_p_mask.masked_logprobs, GROUPED,
            zeros(2), 0.9)  # fmt: skip
    refused("always has shape [1], expected [...] = [2]", top_p_mask.masked_logprobs, GROUPED, GROUPED, 0.9,
            torch.tensor([0]))  # fmt: skip
