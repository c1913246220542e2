"""Small tensor operations that more than one algorithm needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_sum", "sequence_mean", "token_mean", "constant_length"]
RatioLevel = Literal["token", "sequence_mean", "sequence_sum"]

MAX_LOG_RATIO = 20.0
"""A log-ratio counts as at most this far from 0: beyond, exp would run away, and every clip has acted long before."""


def sequence_weights(lengths: Tensor, aggregation: Aggregation, longest: int | None = None) -> Tensor:
    """What each token of each of N sequences counts in the step's loss, ``sum over tokens of weight * loss``.

    - sequence_sum: 1/N. The mean over sequences of the sum over tokens: the policy gradient as it is derived, and the
      only one of the four that is unbiased where lengths differ.
    - sequence_mean: 1/(N |o_i|). The mean over sequences of the token mean: GRPO, arXiv 2402.03300, equation 3.
    - token_mean: 1/sum of |o_i|. The mean over all tokens of the step: DAPO, arXiv 2503.14476, equation 8.
    - constant_length: 1/(N longest). ``sequence_sum`` in units that do not depend on the samples: Dr. GRPO, arXiv
      2503.20783, section 3.

    Args:
        lengths: [..., N], trained tokens of each sequence, over the whole update and not over a microbatch.
        longest: tokens that a completion may have; for constant_length only.
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
    if aggregation == "constant_length":
        if longest is None:
            raise ValueError("constant_length divides by the longest possible length: pass longest=...")
        return torch.full_like(lengths, 1 / (count * longest))
    raise ValueError(f"unknown aggregation {aggregation!r}: sequence_sum, sequence_mean, token_mean or constant_length")


def owners(lengths: Tensor) -> Tensor:
    """[T], the sequence that each token belongs to."""
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def sum_by_sequence(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums flat token values [T] within each sequence; [N]. ``lengths`` [N] adds up to T."""
    return torch.zeros(len(lengths), dtype=values.dtype).index_add(0, owners(lengths), values)


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, lengths: Tensor, level: RatioLevel = "token") -> Tensor:
    """log of pi/pi_old a token, with gradient; [T].

    - token: of each token.
    - sequence_mean: of the whole sequence, its mean over the tokens: GSPO's s_i, arXiv 2507.18071, equation 7.
    - sequence_sum: of the whole sequence, its sum: the true importance ratio of the text.

    The two sequence forms give every token of a sequence the same number. A log-ratio is held within +-20.
    """
    difference = logprobs - old_logprobs
    if level != "token":
        total = sum_by_sequence(difference, lengths)
        if level == "sequence_mean":
            total = total / lengths.clamp_min(1)
        difference = total.repeat_interleave(lengths)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def pad_by_sequence(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Flat token values [T] as rows [N, L], zero past the end, and the mask [N, L] that flattens them again."""
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest) < lengths[:, None]
    rows = torch.zeros(len(lengths), longest, dtype=values.dtype).masked_scatter(mask, values)
    return rows, mask


def effective_sample_size(weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2), the share of n weighted samples that count (Kong 1992): 1 where all weights are equal."""
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp_min(1e-300)
