"""Advantages a token, from rewards that came with tokens: reward-to-go minus what each algorithm compares rewards with.

Two kinds of reward meet here. What the whole text earned, ``whole`` [..., P, G], counts for each of its tokens, as in
``advantages``. What single tokens earned is given as its reward-to-go, ``to_go`` [..., P, G, L]: a token gets what came with
it or later, since it cannot have caused what was there before it (Sutton and Barto, section 13.3; Williams 1992). Where
nothing came with tokens, each function here is its counterpart of ``advantages``, token by token.

Samples of a group are compared place by place; of one that has ended nothing is still to come there, which counts as 0.
For one sample the others' numbers are constants, so a mean of the others biases nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from burnish.algorithms.advantages import AdvantageFunction, Baseline, group_centred, leave_one_out

TokenAdvantages = Callable[[Tensor, Tensor, Tensor, Baseline], Tensor]
"""whole [..., P, G], to_go and mask [..., P, G, L], baseline: advantages [..., P, G, L], zero past the end."""


def token_reinforce(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """A_t = W + G_t: REINFORCE with rewards-to-go. ``baseline`` is not used."""
    return (whole.unsqueeze(-1) + to_go).masked_fill(~mask, 0.0)


def token_moving_baseline(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """A_t = W + G_t - b.

    Args:
        baseline: b, the moving mean over earlier steps of ``mean_return``; or [P, 1], that of each prompt's own.
    """
    level = baseline.unsqueeze(-1) if isinstance(baseline, Tensor) else baseline
    return (whole.unsqueeze(-1) + to_go - level).masked_fill(~mask, 0.0)


def token_leave_one_out(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """RLOO: less the mean of the other G-1 samples, of the whole and at each place. Needs G >= 2."""
    return _compared(leave_one_out, whole, to_go, mask)


def token_group_centred(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """Dr. GRPO: less the mean of the group, (G-1)/G times ``token_leave_one_out``. Needs G >= 2."""
    return _compared(group_centred, whole, to_go, mask)


def token_group_normalised(
    whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0, epsilon: float = 1e-4
) -> Tensor:
    """GRPO: ``token_group_centred`` divided by the group's spread, sqrt(sum over samples of the token mean of A_t^2 / (G-1)) +
    epsilon. Needs G >= 2.

    Where all tokens of a sample share one number that is the deviation of divisor G-1. The deviation of the totals would
    not do: samples that come to the same on different ways have none, and their tokens would be divided by epsilon.
    """
    centred = token_group_centred(whole, to_go, mask)
    squares = centred.square().sum(-1) / mask.sum(-1).clamp_min(1)
    spread = (squares.sum(-1, keepdim=True) / (whole.shape[-1] - 1)).sqrt()
    return centred / (spread + epsilon).unsqueeze(-1)


def token_batch_normalised(whole: Tensor, to_go: Tensor, mask: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """REINFORCE++: as ``token_group_normalised``, with all P*G samples of the step as one group. Needs P*G >= 2."""
    rows, longest = (*whole.shape[:-2], 1, -1), to_go.shape[-1]
    found = token_group_normalised(whole.reshape(rows), to_go.reshape(*rows, longest), mask.reshape(*rows, longest))
    return found.reshape(to_go.shape)


def mean_return(whole: Tensor, to_go: Tensor, mask: Tensor) -> Tensor:
    """W plus the mean of G_t over a sample's tokens, [..., P, G]: what ``token_moving_baseline`` has to foresee."""
    return whole + to_go.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def _compared(function: AdvantageFunction, whole: Tensor, to_go: Tensor, mask: Tensor) -> Tensor:
    by_place = function(torch.movedim(to_go, -1, -3), 0.0)
    return (function(whole, 0.0).unsqueeze(-1) + torch.movedim(by_place, -3, -1)).masked_fill(~mask, 0.0)
