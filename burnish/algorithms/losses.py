"""Losses a token. Each takes flat tensors [T] and returns [T]; how they are added up is ``ops.sequence_weights``.

All take the same four arguments, so that a preset can name any of them: the log-probabilities with gradient, the log of
the ratio pi/pi_old with gradient (``ops.log_ratio``), the advantages, and the ratio's limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RatioLimits:
    """What keeps the ratio r = pi/pi_old in bounds.

    Attributes:
        low, high: r is clipped to [1 - low, 1 + high].
        dual: for A < 0, r counts as at most this (arXiv 1912.09729, equation 5); 0 is off, else above 1 + high.
        gate_positive, gate_negative: temperatures of the soft gate for A > 0 and for the rest (arXiv 2511.20347).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0
    gate_positive: float = 1.0
    gate_negative: float = 1.05


LossFunction = Callable[[Tensor, Tensor, Tensor, RatioLimits], Tensor]
ClipFunction = Callable[[Tensor, Tensor, RatioLimits], tuple[Tensor, Tensor]]

DEFAULT_LIMITS = RatioLimits()


def log_likelihood(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS
) -> Tensor:
    """-A log pi(a|s): its gradient is the score-function estimator (Williams 1992; Sutton et al. 1999, theorem 1).

    The ratio is not used: the samples are taken to come from the policy as it is now.
    """
    return -advantages * logprobs


def clipped_ratio(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS
) -> Tensor:
    """-min(r A, clip(r, 1-low, 1+high) A) (PPO, arXiv 1707.06347, equation 7), with the dual clip where it is on.

    On the policy's own samples r = 1: the value is -A and the gradient that of ``log_likelihood``.
    """
    ratio = log_ratio.exp()
    gain = (ratio * advantages).minimum(ratio.clamp(1 - limits.low, 1 + limits.high) * advantages)
    if limits.dual > 0:
        gain = torch.where(advantages < 0, gain.maximum(limits.dual * advantages), gain)
    return -gain


def clipped_weight(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS
) -> Tensor:
    """CISPO: -stopgrad(clip(r, 1-low, 1+high)) A log pi (arXiv 2506.13585, equations 4 and 5).

    The weight is clipped and not the gradient, so no token falls out of the update.
    """
    weight = log_ratio.detach().exp().clamp(1 - limits.low, 1 + limits.high)
    return -weight * advantages * logprobs


def soft_gate(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS) -> Tensor:
    """SAPO: -(4/tau) sigmoid(tau (r - 1)) A, tau by the sign of A (arXiv 2511.20347, equations 5 and 6).

    At r = 1 the slope of the gate is 4/tau * tau/4 = 1, so on the policy's own samples the gradient is that of
    ``log_likelihood``; away from 1 it fades instead of ending at an edge.
    """
    positive = advantages.new_tensor(limits.gate_positive)
    tau = torch.where(advantages > 0, positive, advantages.new_tensor(limits.gate_negative))
    return -(4 / tau) * (tau * (log_ratio.exp() - 1)).sigmoid() * advantages


def tokens_with_clipped_gradient(log_ratio: Tensor, advantages: Tensor, limits: RatioLimits) -> tuple[Tensor, Tensor]:
    """Of ``clipped_ratio``: tokens whose gradient is cut, below and above, each [T] bool. The dual clip counts as above."""
    ratio = log_ratio.exp()
    high = (ratio > 1 + limits.high) & (advantages > 0)
    if limits.dual > 0:
        high |= (ratio > limits.dual) & (advantages < 0)
    return (ratio < 1 - limits.low) & (advantages < 0), high


def tokens_with_clipped_weight(log_ratio: Tensor, advantages: Tensor, limits: RatioLimits) -> tuple[Tensor, Tensor]:
    """Of ``clipped_weight``: tokens whose weight is not the ratio itself, below and above, each [T] bool."""
    ratio = log_ratio.exp()
    return ratio < 1 - limits.low, ratio > 1 + limits.high


def no_clipped_tokens(log_ratio: Tensor, advantages: Tensor, limits: RatioLimits) -> tuple[Tensor, Tensor]:
    """Of losses without a clip: no token below, none above."""
    none = torch.zeros_like(log_ratio, dtype=torch.bool)
    return none, none


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """max((V - R)^2, (clip(V, V_old-clip, V_old+clip) - R)^2) / 2, a token; [T] (PPO as its authors' code has it).

    Args:
        clip: how far V may move from what it was when the samples were drawn, in units of the reward; 0 is off.
    """
    plain = (values - returns).square()
    if clip <= 0:
        return plain / 2
    near = old_values + (values - old_values).clamp(-clip, clip)
    return plain.maximum((near - returns).square()) / 2
