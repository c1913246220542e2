"""The distribution that is sampled from, and the draw from it. Sampler and trainer use the same functions, so that the
log-probabilities the trainer differentiates are those of the distribution really sampled from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from burnish.types import Prompt, SamplingParams


def truncates(sampling: SamplingParams) -> bool:
    """Whether some tokens can never be drawn."""
    return sampling.top_p < 1 or sampling.top_k > 0


def sampling_logprobs(logits: Tensor, sampling: SamplingParams, always: Tensor | None = None) -> Tensor:
    """Log-probabilities of the distribution that ``sampling`` describes; minus infinity where a token cannot be drawn.

    The set of kept tokens is piecewise constant in the logits, so differentiating through this gives the gradient of
    the truncated distribution itself: nothing is left to correct for the mass that was cut away.

    Args:
        logits: [..., V].
        always: [...] token ids that are kept in any case. The trainer passes the tokens that were sampled: they were
            kept then, and a rounding error at the edge of the set must not make them impossible now.
    """
    scaled = logits / sampling.temperature if sampling.temperature != 1 else logits
    if truncates(sampling):
        keep = _kept(scaled.detach(), sampling)
        if always is not None:
            keep = keep.scatter(-1, always.unsqueeze(-1), True)
        scaled = scaled.masked_fill(~keep, float("-inf"))
    return scaled.log_softmax(-1)


def _kept(scaled: Tensor, sampling: SamplingParams) -> Tensor:
    """[..., V] bool. Ties at the edge go to the lower token id, so the set never depends on the batch."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k > 0:
        keep[..., sampling.top_k :] = False
    if sampling.top_p < 1:
        # top_p is a share of what top_k has left, as in transformers.
        mass = ordered.masked_fill(~keep, float("-inf")).double().softmax(-1)
        keep &= mass.cumsum(-1) - mass < sampling.top_p
    return torch.zeros_like(keep).scatter(-1, order, keep)


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row by inverting the cumulative distribution: the first token whose cumulated mass exceeds u * total.

    Args:
        logprobs: [N, V].
        uniforms: [N] float64 in [0, 1).
    Returns:
        [N] token ids; never one whose probability is zero.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    # The total is 1 up to rounding; scaling u by it leaves no gap past the end.
    wanted = (uniforms.unsqueeze(-1) * cumulative[:, -1:]).clamp_max(cumulative[:, -1:].nextafter(torch.zeros(())))
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)


def streams(prompts: Sequence[Prompt], samples_per_prompt: int, seed: Sequence[int], length: int) -> list[np.ndarray]:
    """The random numbers of P*G samples, prompt by prompt: [length] float64 in [0, 1) each.

    A sample's numbers depend on the seed, its prompt's id and its own index, not on who shares its batch. A prompt that
    occurs twice gets other numbers the second time.
    """
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.id.encode()).digest()
        words = [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]
        first = seen[prompt.id] * samples_per_prompt
        seen[prompt.id] += 1
        for index in range(first, first + samples_per_prompt):
            sequence = np.random.SeedSequence([*seed, *words, index])
            found.append(np.random.Generator(np.random.Philox(sequence)).random(length))
    return found
