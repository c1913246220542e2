"""Losses a token. Each takes flat tensors [T] and returns [T]; how they are added up is ``ops.sequence_weights``."""

from __future__ import annotations

from torch import Tensor


def log_likelihood(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi(a|s): its gradient is the score-function estimator (Williams 1992; Sutton et al. 1999, theorem 1).

    ``old_logprobs`` is not used: the samples are taken to come from the policy as it is now.
    """
    return -advantages * logprobs


def clipped_ratio(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """-min(r A, clip(r, 1-clip_low, 1+clip_high) A), r = pi/pi_old (PPO, arXiv 1707.06347, equation 7).

    On the policy's own samples r = 1: the value is -A and the gradient that of ``log_likelihood``.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -(ratio * advantages).minimum(clipped * advantages)


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2
) -> Tensor:
    """Share of tokens whose gradient the clip of ``clipped_ratio`` takes away; a scalar."""
    ratio = (logprobs - old_logprobs).exp()
    return (((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))).to(ratio.dtype).mean()
