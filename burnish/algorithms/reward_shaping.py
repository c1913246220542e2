"""Reward shaping before advantages: length terms, normalisation, and running moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from burnish.algorithms.checks import check_flat, check_rank

if TYPE_CHECKING:
    from torch import Tensor


def overlong_penalty(lengths: Tensor, longest: int, share: float) -> Tensor:
    """Return DAPO's soft overlong punishment, in [-1, 0] (arXiv 2503.14476, equation 13); [N] float64.

    It is 0 up to ``longest - buffer`` tokens and falls linearly to -1 at ``longest``; buffer = share * longest.
    """
    check_flat(lengths=lengths)
    if share <= 0:
        return torch.zeros(len(lengths), dtype=torch.float64)
    buffer = share * longest
    return (((longest - buffer) - lengths.double()) / buffer).clamp(-1.0, 0.0)


def length_cost(lengths: Tensor, longest: int) -> Tensor:
    """Return -|o_i| / longest, in [-1, 0], the cost of length; [N] float64."""
    check_flat(lengths=lengths)
    return -lengths.double() / longest


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of the rewards so far (Welford 1962)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: Tensor) -> RunningMoments:
        """Return the moments with further values included."""
        count = float(values.numel())
        mean = float(values.mean())
        squares = float((values - mean).square().sum())
        total = self.count + count
        distance = mean - self.mean
        return RunningMoments(
            total,
            self.mean + distance * count / total,
            self.squares + squares + distance * distance * self.count * count / total,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation, divisor n-1; 1 (no scaling) for fewer than two values or equal ones."""
        if self.count < 2 or self.squares <= 0:
            return 1.0
        return float((self.squares / (self.count - 1)) ** 0.5) or 1.0  # squares of tiny numbers round to zero


def standardise_by_moments(rewards: Tensor, moments: RunningMoments) -> Tensor:
    """Return (R - mean) / std, with the moments of the rewards of earlier steps.

    These samples do not enter the moments, so that only the scale of the gradient changes, not its direction. The first
    step has no earlier rewards and is unchanged.
    """
    return (rewards - moments.mean) / moments.deviation


def standardise(rewards: Tensor) -> Tensor:
    """Return (R - mean) / std over the last dimension (divisor N, no epsilon); equal rewards give exactly zero.

    GDPO normalises each reward part like this within its group, before ``batch_normalised`` takes the weighted sum of
    the parts over the step (arXiv 2601.05242). If the sum alone were normalised, the part of the widest spread would
    drown the others; here each part counts by its weight. A divisor N-1 would change the sum by a constant factor,
    which the second normalisation cancels.
    """
    check_rank("rewards", rewards, "[..., N]", 1)
    # The mean of equal numbers can be off by a rounding error, which the division would raise to order one.
    equal = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    spread = rewards.std(-1, correction=0, keepdim=True)
    equal |= spread == 0  # the squares of tiny deviations round to zero
    return ((rewards - rewards.mean(-1, keepdim=True)) / spread.masked_fill(equal, 1.0)).masked_fill(equal, 0.0)


def rank_in_group(rewards: Tensor) -> Tensor:
    """Return the rank within the group [..., G], from -1 (worst) to 1 (best); ties share their mean rank."""
    check_rank("rewards", rewards, "[..., G]", 1)
    size, ordered = rewards.shape[-1], rewards.sort(-1).values
    below = torch.searchsorted(ordered, rewards.contiguous())
    above = size - torch.searchsorted(ordered, rewards.contiguous(), right=True)
    return (below - above).to(rewards.dtype) / max(1, size - 1)
