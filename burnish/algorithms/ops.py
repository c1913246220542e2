"""Operations on flat token tensors: aggregation weights, ratios, sums and padding by sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from burnish.algorithms.checks import check_flat, check_rank

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal["sequence_sum", "sequence_mean", "token_mean", "constant_length"]
RatioLevel = Literal["token", "sequence_mean", "sequence_sum"]

MAX_LOG_RATIO = 20.0
"""Bound of the absolute value of a log-ratio: larger ones would overflow exp, and every clip acts long before."""


def sequence_weights(lengths: Tensor, aggregation: Aggregation, longest: int | None = None) -> Tensor:
    """Return the weight [..., N] of each sequence's tokens in the step's loss, ``sum over tokens of weight * loss``.

    - sequence_sum: 1/N. The mean over sequences of the sum over tokens: the policy gradient as derived, and the only
      one of the four that is unbiased when lengths differ.
    - sequence_mean: 1/(N |o_i|). The mean over sequences of the token mean: GRPO, arXiv 2402.03300, equation 3.
    - token_mean: 1/sum of |o_i|. The mean over all tokens of the step: DAPO, arXiv 2503.14476, equation 8.
    - constant_length: 1/(N longest). ``sequence_sum`` in units that do not depend on the samples: Dr. GRPO, arXiv
      2503.20783, section 3.

    Args:
        lengths: [..., N], trained tokens of each sequence of the whole update, not of a microbatch.
        longest: maximum number of tokens of a completion; for constant_length only.
    """
    check_rank("lengths", lengths, "[..., N]", 1)
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
    """Return the index of the sequence that each token belongs to, [T]."""
    check_flat(lengths=lengths)
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def sum_by_sequence(values: Tensor, lengths: Tensor) -> Tensor:
    """Sum flat token values [T] within each sequence; [N]. ``lengths`` [N] adds up to T."""
    check_flat(values=values)
    return torch.zeros(len(lengths), dtype=values.dtype).index_add(0, owners(lengths), values)


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, lengths: Tensor, level: RatioLevel = "token") -> Tensor:
    """Return the log of pi/pi_old per token, with gradient; [T].

    - token: of each token.
    - sequence_mean: the mean over the sequence's tokens: GSPO's s_i, arXiv 2507.18071, equation 7.
    - sequence_sum: the sum over the sequence's tokens: the true importance ratio of the text.

    The sequence levels give every token of a sequence the same number. Log-ratios are clamped to +-20.
    """
    check_flat(logprobs=logprobs, old_logprobs=old_logprobs)
    check_flat(lengths=lengths)
    difference = logprobs - old_logprobs
    if level != "token":
        total = sum_by_sequence(difference, lengths)
        if level == "sequence_mean":
            total = total / lengths.clamp_min(1)
        difference = total.repeat_interleave(lengths)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def pad_by_sequence(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat token values [T] as rows [N, L], zero past the end, and the mask [N, L] that flattens them again."""
    check_flat(values=values)
    check_flat(lengths=lengths)
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest) < lengths[:, None]
    rows = torch.zeros(len(lengths), longest, dtype=values.dtype).masked_scatter(mask, values)
    return rows, mask
