"""What is done to rewards before they become advantages: length terms, normalisers, and their running state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def overlong_penalty(lengths: Tensor, longest: int, share: float) -> Tensor:
    """DAPO's soft overlong punishment, in [-1, 0] (arXiv 2503.14476, equation 13); [N] float64.

    0 up to ``longest - buffer`` tokens, then falling linearly to -1 at ``longest``, with a buffer of ``share * longest``.
    """
    if share <= 0:
        return torch.zeros(len(lengths), dtype=torch.float64)
    buffer = share * longest
    return (((longest - buffer) - lengths.double()) / buffer).clamp(-1.0, 0.0)


def length_cost(lengths: Tensor, longest: int) -> Tensor:
    """-|o_i| / longest, in [-1, 0]: what brevity is worth; [N] float64."""
    return -lengths.double() / longest


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of the rewards so far (Welford 1962)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: Tensor) -> RunningMoments:
        """With some more values in it."""
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
        """Standard deviation, divisor n-1; 1 while there is nothing to tell it from, so that nothing is scaled."""
        if self.count < 2 or self.squares <= 0:
            return 1.0
        return float((self.squares / (self.count - 1)) ** 0.5)


def standardise_by_moments(rewards: Tensor, moments: RunningMoments) -> Tensor:
    """(R - mean) / std of the rewards of earlier steps: numbers that these samples have no part in, so the gradient's
    direction is not biased, only its scale changes. The first step has no earlier one and is taken as it is."""
    return (rewards - moments.mean) / moments.deviation


def rank_in_group(rewards: Tensor) -> Tensor:
    """The rank within the group, from -1 (worst) to 1 (best), ties sharing their mean rank: only the order counts.

    Args:
        rewards: [..., G].
    """
    size, ordered = rewards.shape[-1], rewards.sort(-1).values
    below = torch.searchsorted(ordered, rewards.contiguous())
    above = size - torch.searchsorted(ordered, rewards.contiguous(), right=True)
    return (below - above).to(rewards.dtype) / max(1, size - 1)
