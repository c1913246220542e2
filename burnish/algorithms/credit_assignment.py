"""Which token gets which share of the reward. Rows are padded, [..., L] with zeros past the end."""

from __future__ import annotations

import torch
from torch import Tensor


def reward_to_go(rewards: Tensor, discount: float = 1.0) -> Tensor:
    """G_t = r_t + discount * G_(t+1), [..., L]: what a token can still influence (Sutton and Barto, equation 3.9)."""
    found = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[..., 0])
    for place in reversed(range(rewards.shape[-1])):
        later = rewards[..., place] + discount * later
        found[..., place] = later
    return found


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, trace: float = 0.95
) -> Tensor:
    """GAE: A_t = d_t + discount * trace * A_(t+1), d_t = r_t + discount * V(s_(t+1)) - V(s_t) (arXiv 1506.02438, 16).

    V after the last token is 0: a text that ended is worth nothing more, and one that was cut is treated so too.

    Args:
        values: V(s_t) before each token, [..., L]; zero past the end.
        mask: [..., L], True on real tokens.
        trace: lambda. 1 is unbiased whatever the values are; below, the values' errors are traded for variance.
    Returns:
        [..., L], zero past the end.
    """
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    errors = (rewards + discount * following - values).masked_fill(~mask, 0.0)
    return reward_to_go(errors, discount * trace)


def whiten(values: Tensor, mask: Tensor | None = None, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + epsilon) over all tokens [..., T], as PPO implementations do; a lone or constant x gives 0.

    The variance has the divisor T - 1.

    Args:
        mask: [..., T], True on the tokens that count; the others give 0.
    """
    counted = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    count = counted.sum(-1, keepdim=True)
    mean = values.where(counted, 0.0).sum(-1, keepdim=True) / count.clamp_min(1)
    deviation = (values - mean).where(counted, 0.0)
    variance = deviation.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)
    # The mean of equal numbers can miss them by a rounding error, which the division would blow up to order one.
    most = values.where(counted, -torch.inf).amax(-1, keepdim=True)
    least = values.where(counted, torch.inf).amin(-1, keepdim=True)
    return (deviation / (variance + epsilon).sqrt()).masked_fill(most <= least, 0.0)


def potential_differences(potentials: Tensor, *, keep_total: bool, empty: float = 0.0) -> Tensor:
    """What the score of a text gained with each token: phi_t - phi_(t-1); [..., L].

    With ``keep_total`` they add up to the score of the whole text less that of the empty one. Without it the text's end
    counts as worth 0, the last token pays everything back and the sum is minus phi of the empty text, a constant:
    potential-based shaping, which moves credit along the text and leaves the optimum where it is (Ng, Harada and Russell
    1999, theorem 1). The first is the second plus the score of the whole text at its end.

    Args:
        empty: phi of the empty text.
    """
    before = torch.cat([torch.full_like(potentials[..., :1], empty), potentials[..., :-1]], -1)
    gained = potentials - before
    if not keep_total:
        gained[..., -1] = -before[..., -1]
    return gained
