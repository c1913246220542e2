"""Credit assignment to tokens: rewards-to-go, GAE and potential-based shaping of rows [..., L], zero past the end."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.algorithms.checks import check_equal_shapes, check_rank


def reward_to_go(rewards: Tensor, discount: float = 1.0) -> Tensor:
    """Return G_t = r_t + discount * G_(t+1), the reward that a token can influence (Sutton and Barto, equation 3.9)."""
    check_rank("rewards", rewards, "[..., L]", 1)
    to_go = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[..., 0])
    for index in reversed(range(rewards.shape[-1])):
        later = rewards[..., index] + discount * later
        to_go[..., index] = later
    return to_go


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, trace: float = 0.95
) -> Tensor:
    """GAE: A_t = d_t + discount * trace * A_(t+1), d_t = r_t + discount * V(s_(t+1)) - V(s_t) (arXiv 1506.02438, 16).

    V after the last token is 0. Deviation from the paper: this also holds for a text cut at the length limit.

    Args:
        values: V(s_t) before each token, [..., L]; zero past the end.
        mask: [..., L], True on real tokens.
        trace: lambda. 1 is unbiased for any values; smaller ones have less variance and the bias of the values' errors.
    """
    check_rank("rewards", rewards, "[..., L]", 1)
    check_equal_shapes(rewards=rewards, values=values, mask=mask)
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    errors = (rewards + discount * following - values).masked_fill(~mask, 0.0)
    return reward_to_go(errors, discount * trace)


def whiten(values: Tensor, mask: Tensor | None = None, epsilon: float = 1e-8) -> Tensor:
    """Return (x - mean) / sqrt(var + epsilon) over all tokens [..., T], as PPO implementations do.

    The variance has the divisor T - 1. A lone or constant x gives 0, and so do tokens where the mask [..., T] is False.
    """
    check_rank("values", values, "[..., T]", 1)
    if mask is not None:
        check_equal_shapes(values=values, mask=mask)
    counted = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    count = counted.sum(-1, keepdim=True)
    mean = values.where(counted, 0.0).sum(-1, keepdim=True) / count.clamp_min(1)
    deviation = (values - mean).where(counted, 0.0)
    variance = deviation.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)
    # The mean of equal numbers can be off by a rounding error, which the division would raise to order one.
    most = values.where(counted, -torch.inf).amax(-1, keepdim=True)
    least = values.where(counted, torch.inf).amin(-1, keepdim=True)
    return (deviation / (variance + epsilon).sqrt()).masked_fill(most <= least, 0.0)


def potential_differences(potentials: Tensor, *, keep_total: bool, empty: float = 0.0) -> Tensor:
    """Return the gain of a text's score with each token, phi_t - phi_(t-1), for phi_t after each token; [..., L].

    With ``keep_total`` the gains add up to the score of the whole text minus that of the empty one. Without it the
    potential at the end of the text is 0: the last token pays everything back, and the sum is minus phi of the empty
    text, a constant. This is potential-based shaping, which moves credit along the text without moving the optimum (Ng,
    Harada and Russell 1999, theorem 1). The first equals the second plus the score of the whole text at its end.
    """
    check_rank("potentials", potentials, "[..., L]", 1)
    before = torch.cat([torch.full_like(potentials[..., :1], empty), potentials[..., :-1]], -1)
    gains = potentials - before
    if not keep_total:
        gains[..., -1] = -before[..., -1]
    return gains
