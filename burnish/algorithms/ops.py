"""Small tensor operations that more than one algorithm needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_sum", "sequence_mean", "token_mean"]


def sequence_weights(lengths: Tensor, aggregation: Aggregation) -> Tensor:
    """What each token of each of N sequences counts in the step's loss, ``sum over tokens of weight * loss``.

    - sequence_sum: 1/N. The mean over sequences of the sum over tokens: the policy gradient as it is derived, and the
      only one of the three that is unbiased where lengths differ.
    - sequence_mean: 1/(N |o_i|). The mean over sequences of the token mean: GRPO, arXiv 2402.03300, equation 3.
    - token_mean: 1/sum of |o_i|. The mean over all tokens of the step: DAPO, arXiv 2503.14476, equation 8.

    Args:
        lengths: [..., N], trained tokens of each sequence, over the whole step and not over a microbatch.
    Returns:
        [..., N], the weight of each token of each sequence.
    """
    lengths = lengths.double()
    count = lengths.shape[-1]
    if aggregation == "sequence_sum":
        return torch.full_like(lengths, 1 / count)
    if aggregation == "sequence_mean":
        return 1 / (count * lengths)
    if aggregation == "token_mean":
        return (1 / lengths.sum(-1, keepdim=True)).expand_as(lengths)
    raise ValueError(f"unknown aggregation {aggregation!r}: sequence_sum, sequence_mean or token_mean")


def sum_by_sequence(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums flat token values [T] within each sequence; [N]. ``lengths`` [N] adds up to T."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.zeros(len(lengths), dtype=values.dtype).index_add(0, index, values)
