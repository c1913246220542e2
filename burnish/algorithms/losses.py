"""Per-token losses: flat tensors [T] to losses [T], which ``ops.sequence_weights`` adds up.

All policy losses take the same four arguments, so that a preset can use any of them: the log-probabilities and the log
of the ratio pi/pi_old (``ops.log_ratio``), both with gradient, the advantages, and the limits of the ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from burnish.algorithms.checks import check_flat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RatioLimits:
    """Limits of the ratio r = pi/pi_old.

    Attributes:
        low, high: r is clipped to [1 - low, 1 + high].
        dual: upper bound of r for A < 0 (arXiv 1912.09729, equation 5); 0 is off, otherwise above 1 + high.
        gate_positive, gate_negative: temperatures of the soft gate for A > 0 and for A <= 0 (arXiv 2511.20347).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0
    gate_positive: float = 1.0
    gate_negative: float = 1.05


LossFunction: TypeAlias = "Callable[[Tensor, Tensor, Tensor, RatioLimits], Tensor]"
ClipFunction: TypeAlias = "Callable[[Tensor, Tensor, RatioLimits], tuple[Tensor, Tensor]]"
DEFAULT_LIMITS = RatioLimits()


def log_likelihood(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS
) -> Tensor:
    """-A log pi(a|s), whose gradient is the score-function estimator (Williams 1992; Sutton et al. 1999, theorem 1).

    The ratio is not used: the samples are assumed to come from the current policy.
    """
    check_flat(logprobs=logprobs, log_ratio=log_ratio, advantages=advantages)
    return -advantages * logprobs


def clipped_ratio(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS
) -> Tensor:
    """PPO: -min(r A, clip(r, 1-low, 1+high) A) (arXiv 1707.06347, equation 7), with the dual clip if it is on.

    On the policy's own samples r = 1: the value is -A and the gradient is that of ``log_likelihood``.
    """
    check_flat(logprobs=logprobs, log_ratio=log_ratio, advantages=advantages)
    ratio = log_ratio.exp()
    gain = (ratio * advantages).minimum(ratio.clamp(1 - limits.low, 1 + limits.high) * advantages)
    if limits.dual > 0:
        gain = torch.where(advantages < 0, gain.maximum(limits.dual * advantages), gain)
    return -gain


def clipped_weight(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS
) -> Tensor:
    """CISPO: -stopgrad(clip(r, 1-low, 1+high)) A log pi (arXiv 2506.13585, equations 4 and 5).

    The weight is clipped, not the gradient, so that no token drops out of the update.
    """
    check_flat(logprobs=logprobs, log_ratio=log_ratio, advantages=advantages)
    weight = log_ratio.detach().exp().clamp(1 - limits.low, 1 + limits.high)
    return -weight * advantages * logprobs


def soft_gate(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, limits: RatioLimits = DEFAULT_LIMITS) -> Tensor:
    """SAPO: -(4/tau) sigmoid(tau (r - 1)) A, tau by the sign of A (arXiv 2511.20347, equations 5 and 6).

    At r = 1 the slope of the gate is 4/tau * tau/4 = 1, so that on the policy's own samples the gradient is that of
    ``log_likelihood``. Away from 1 it fades smoothly instead of dropping to zero at an edge.
    """
    check_flat(logprobs=logprobs, log_ratio=log_ratio, advantages=advantages)
    positive = advantages.new_tensor(limits.gate_positive)
    tau = torch.where(advantages > 0, positive, advantages.new_tensor(limits.gate_negative))
    return -(4 / tau) * (tau * (log_ratio.exp() - 1)).sigmoid() * advantages


def tokens_with_clipped_gradient(log_ratio: Tensor, advantages: Tensor, limits: RatioLimits) -> tuple[Tensor, Tensor]:
    """Return the tokens whose gradient ``clipped_ratio`` cuts, below and above (with the dual clip), each [T] bool."""
    check_flat(log_ratio=log_ratio, advantages=advantages)
    ratio = log_ratio.exp()
    high = (ratio > 1 + limits.high) & (advantages > 0)
    if limits.dual > 0:
        high |= (ratio > limits.dual) & (advantages < 0)
    return (ratio < 1 - limits.low) & (advantages < 0), high


def tokens_with_clipped_weight(log_ratio: Tensor, advantages: Tensor, limits: RatioLimits) -> tuple[Tensor, Tensor]:
    """Return the tokens whose weight ``clipped_weight`` cuts, below and above, each [T] bool."""
    check_flat(log_ratio=log_ratio, advantages=advantages)
    ratio = log_ratio.exp()
    return ratio < 1 - limits.low, ratio > 1 + limits.high


def no_clipped_tokens(log_ratio: Tensor, advantages: Tensor, limits: RatioLimits) -> tuple[Tensor, Tensor]:
    """Return no tokens, for losses without a clip."""
    check_flat(log_ratio=log_ratio, advantages=advantages)
    none = torch.zeros_like(log_ratio, dtype=torch.bool)
    return none, none


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """max((V - R)^2, (clip(V, V_old-clip, V_old+clip) - R)^2) / 2 per token; [T] (as in the code of PPO's authors).

    V_old is the value at sampling time. The clip is in units of the reward; 0 is off.
    """
    check_flat(values=values, old_values=old_values, returns=returns)
    plain = (values - returns).square()
    if clip <= 0:
        return plain / 2
    near = old_values + (values - old_values).clamp(-clip, clip)
    return plain.maximum((near - returns).square()) / 2
