"""Importance weights that correct for a sampler's policy mu that differs from the trained policy pi.

E_mu[w f] = E_pi[f] with w = pi/mu of the whole text. Per-token weights ignore how states are reached, which biases them
(less, the closer the two policies are). Truncated weights trade bias for a bounded variance (Ionides 2008; Yao et al.
2025, "Your efficient RL framework secretly brings you off-policy RL training"); masked weights drop outliers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from burnish.algorithms.checks import check_flat
from burnish.algorithms.ops import log_ratio

Correction = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence"]


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    lengths: Tensor,
    *,
    correction: Correction,
    level: Level = "token",
    cap: float = 3.0,
    floor: float = 0.0,
) -> Tensor:
    """Return the factor of each token's loss, [T], without gradient, for sequences of these lengths [N].

    Args:
        correction: none (all 1), truncate (min(w, cap)), or mask (w, or 0 where w is above the cap or below the floor;
            a mask of both sides is IcePop of arXiv 2510.18855).
        level: w of each token, or of the whole sequence (the product over its tokens).
    """
    check_flat(logprobs=logprobs, sampler_logprobs=sampler_logprobs)
    check_flat(lengths=lengths)
    if correction == "none":
        return torch.ones_like(sampler_logprobs)
    ratio = log_ratio(logprobs.detach(), sampler_logprobs, lengths, "token" if level == "token" else "sequence_sum")
    weights = ratio.exp()
    if correction == "truncate":
        return weights.clamp_max(cap)
    if correction == "mask":
        return weights.masked_fill((weights > cap) | (weights < floor), 0.0)
    raise ValueError(f"unknown correction {correction!r}: none, truncate or mask")
