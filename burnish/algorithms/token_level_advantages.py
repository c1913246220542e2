"""Token-level advantages, for rewards that come with tokens: the reward-to-go minus each algorithm's baseline.

Two kinds of reward meet here. The reward of the whole text, ``whole`` [..., P, G], counts for each of its tokens, as in
``advantages``. Rewards of single tokens come as rewards-to-go, ``to_go`` [..., P, G, L]: a token is credited with what
comes with it or later, since it cannot have caused anything earlier (Sutton and Barto, section 13.3; Williams 1992).
Where no reward comes with tokens, each function equals its counterpart in ``advantages``, token by token.

The samples of a group are compared position by position. A sample that has ended has a reward-to-go of 0 there. For one
sample the others' numbers are constants, so that subtracting their mean adds no bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from burnish.algorithms.advantages import AdvantageFunction, Baseline, group_centred, leave_one_out
from burnish.algorithms.checks import check_baseline, check_rank, check_shape

if TYPE_CHECKING:
    from torch import Tensor

TokenAdvantages: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Baseline], Tensor]"
"""whole [..., P, G], to_go and mask [..., P, G, L], baseline -> advantages [..., P, G, L], zero past the end."""


def token_reinforce(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """REINFORCE with rewards-to-go: A_t = W + G_t. ``baseline`` is not used."""
    _check(whole, to_go, mask)
    return (whole.unsqueeze(-1) + to_go).masked_fill(~mask, 0.0)


def token_moving_baseline(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """REINFORCE with a moving baseline: A_t = W + G_t - b, with b the moving mean of ``mean_return``."""
    _check(whole, to_go, mask)
    check_baseline(baseline, whole)
    level = baseline if isinstance(baseline, int | float) else baseline.unsqueeze(-1)
    return (whole.unsqueeze(-1) + to_go - level).masked_fill(~mask, 0.0)


def token_leave_one_out(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """RLOO: minus the mean of the other G-1 samples, for the whole and at each position. Needs G >= 2."""
    return _compared(leave_one_out, whole, to_go, mask)


def token_group_centred(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """Dr. GRPO: minus the mean of the group, (G-1)/G times ``token_leave_one_out``. Needs G >= 2."""
    return _compared(group_centred, whole, to_go, mask)


def token_group_normalised(
    whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0, epsilon: float = 1e-4
) -> Tensor:
    """GRPO: ``token_group_centred`` divided by the group's spread + epsilon. Needs G >= 2.

    The spread is sqrt(sum over samples of the token mean of A_t^2 / (G-1)), which is the standard deviation of divisor
    G-1 if all tokens of a sample have the same advantage. The deviation of the totals would not work: samples that
    reach the same total in different ways have none, and their tokens would be divided by epsilon.
    """
    centred = token_group_centred(whole, to_go, mask)
    squares = centred.square().sum(-1) / mask.sum(-1).clamp_min(1)
    spread = (squares.sum(-1, keepdim=True) / (whole.shape[-1] - 1)).sqrt()
    return centred / (spread + epsilon).unsqueeze(-1)


def token_batch_normalised(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """REINFORCE++: ``token_group_normalised`` with all P*G samples of the step as one group. Needs P*G >= 2."""
    _check(whole, to_go, mask)
    rows, longest = (*whole.shape[:-2], 1, -1), to_go.shape[-1]
    advantages = token_group_normalised(
        whole.reshape(rows), to_go.reshape(*rows, longest), mask.reshape(*rows, longest)
    )  # fmt: skip
    return advantages.reshape(to_go.shape)


def mean_return(whole: Tensor, to_go: Tensor, mask: Tensor) -> Tensor:
    """Return W plus the mean of G_t over each sample's tokens, [..., P, G]: the target of the moving baseline."""
    _check(whole, to_go, mask)
    return whole + to_go.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def _compared(function: AdvantageFunction, whole: Tensor, to_go: Tensor, mask: Tensor) -> Tensor:
    _check(whole, to_go, mask)
    by_position = function(torch.movedim(to_go, -1, -3), 0.0)
    return (function(whole, 0.0).unsqueeze(-1) + torch.movedim(by_position, -3, -1)).masked_fill(~mask, 0.0)


def _check(whole: Tensor, to_go: Tensor, mask: Tensor) -> None:
    check_rank("whole", whole, "[..., P, G]", 2)
    check_shape("to_go", to_go, (*whole.shape, None), "[..., P, G, L]")
    check_shape("mask", mask, to_go.shape, "[..., P, G, L]")
