"""The distribution that is sampled from, and the draw from it. Sampler and trainer use the same functions, so that the
log-probabilities the trainer differentiates are those of the distribution really sampled from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.top_p_mask import masked_logprobs, top_p_set
from burnish.errors import InputError
from burnish.types import Prompt, SamplingParams

TOP = 1024
"""Most probable tokens that a truncated distribution is first looked for in."""
BLOCK = 128
"""Tokens whose mass is summed before the search of a draw."""


def is_truncated(sampling: SamplingParams) -> bool:
    """Whether some tokens can never be drawn."""
    return sampling.top_p < 1 or sampling.top_k > 0


def sampling_logprobs(
    logits: Tensor, sampling: SamplingParams, always: Tensor | None = None, lagged: Tensor | None = None
) -> Tensor:
    """Log-probabilities of the distribution that ``sampling`` describes; minus infinity where a token cannot be drawn.

    The set of kept tokens is piecewise constant in the logits, so differentiating through this gives the gradient of
    the truncated distribution itself: nothing is left to correct for the mass that was cut away.

    Args:
        logits: [..., V].
        always: as in ``kept_tokens``.
        lagged: [..., V], the lagged policy's logits, where ``sampling`` asks for them.
    """
    scaled = logits / sampling.temperature if sampling.temperature != 1 else logits
    if is_truncated(sampling):
        scaled = scaled.masked_fill(~kept_tokens(scaled.detach(), sampling, always), float("-inf"))
    if sampling.lagged_top_p < 1:
        return masked_logprobs(scaled, _lagged(lagged, sampling), sampling.lagged_top_p, always)
    return scaled.log_softmax(-1)


def _lagged(logits: Tensor | None, sampling: SamplingParams) -> Tensor:
    """The lagged policy's logits [..., V] at the temperature of ``sampling``."""
    if logits is None:
        raise InputError("sampling.nlpo_top_p needs a lagged policy, and here is none: leave it out")
    return logits / sampling.temperature


def kept_tokens(scaled: Tensor, sampling: SamplingParams, always: Tensor | None = None) -> Tensor:
    """Which tokens can be drawn, [..., V] bool. Ties at the edge go to the lower token id, so the set never depends on the
    batch.

    Args:
        scaled: [..., V], logits divided by the temperature.
        always: [...] token ids that are kept in any case. The trainer passes the tokens that were sampled: they were
            kept then, and a rounding error at the edge of the set must not make them impossible now.
    """
    rows = scaled.reshape(-1, scaled.shape[-1])
    keep, open_rows = _kept_among_the_top(rows, sampling)
    if len(open_rows):
        keep[open_rows] = _kept_by_sorting(rows[open_rows], sampling)
    if always is not None:
        keep.scatter_(-1, always.reshape(-1, 1), True)
    return keep.view(scaled.shape)


def _kept_among_the_top(rows: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """The kept sets [N, V] found in each row's most probable tokens, and the rows that these do not settle: their set is
    larger, or ties cross its edge. Sorting the whole vocabulary takes many times as long."""
    count = min(TOP, rows.shape[-1])
    ordered = rows.topk(count, -1).values
    if sampling.top_k > 0:
        ordered = ordered[:, : sampling.top_k]
    number = torch.full((len(rows),), ordered.shape[1], device=rows.device)
    settled = number.new_full((len(rows),), sampling.top_k <= count or count == rows.shape[-1], dtype=torch.bool)
    if sampling.top_p < 1:
        # top_p is a share of what top_k has left, as in transformers.
        whole = ordered if sampling.top_k > 0 else rows
        mass = (ordered.double() - whole.double().logsumexp(-1, keepdim=True)).exp()
        inside = mass.cumsum(-1) - mass < sampling.top_p
        number = inside.sum(-1)
        settled &= (number < ordered.shape[1]) | (ordered.shape[1] in (sampling.top_k, rows.shape[-1]))
    edge = ordered.gather(-1, number[:, None] - 1)
    keep = rows >= edge
    settled &= keep.sum(-1) == number
    return keep, (~settled).nonzero().squeeze(-1)


def _kept_by_sorting(rows: Tensor, sampling: SamplingParams) -> Tensor:
    """[N, V] bool."""
    ordered, order = rows.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k > 0:
        keep[..., sampling.top_k :] = False
    if sampling.top_p < 1:
        mass = ordered.masked_fill(~keep, float("-inf")).double().softmax(-1)
        keep &= mass.cumsum(-1) - mass < sampling.top_p
    return torch.zeros_like(keep).scatter(-1, order, keep)


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row by inverting the cumulative distribution: the first token whose cumulated mass exceeds u * total.

    One uniform number and a search, first among sums of blocks of tokens, then within the block, so that the vocabulary is
    passed over once and in the scores' own precision.

    Args:
        scores: [N, V], logits or log-probabilities.
        uniforms: [N] float64 in [0, 1).
    Returns:
        [N] token ids; never one whose probability is zero.
    """
    return _draw((scores - scores.amax(-1, keepdim=True)).exp_(), uniforms)[0]


def draw_tokens(
    logits: Tensor, uniforms: Tensor, sampling: SamplingParams, lagged: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens [N] drawn from the distribution that ``sampling`` describes, and their log-probabilities [N], nats, float64.

    Args:
        logits: [N, V], at least float32; not divided by the temperature yet. Its memory is written over.
        uniforms: [N] float64 in [0, 1).
        lagged: [N, V], the lagged policy's logits, where ``sampling`` asks for them.
    """
    if sampling.temperature != 1:
        logits = logits.div_(sampling.temperature)
    if is_truncated(sampling):
        logits = logits.masked_fill_(~kept_tokens(logits, sampling), float("-inf"))
    if sampling.lagged_top_p < 1:
        logits = logits.masked_fill_(~top_p_set(_lagged(lagged, sampling), sampling.lagged_top_p), float("-inf"))
    masses = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return _draw(masses, uniforms)


def _draw(masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [N] and their log-probabilities [N] float64, from masses [N, V] that need not add up to 1."""
    short = -masses.shape[-1] % BLOCK
    if short:
        masses = torch.nn.functional.pad(masses, (0, short))
    blocks = masses.view(len(masses), -1, BLOCK)
    sums = blocks.sum(-1).double()
    cumulative = sums.cumsum(-1)
    wanted = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    block = _first_above(cumulative, wanted)
    before = (cumulative - sums).gather(-1, block)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(-1)
    tokens = block * BLOCK + _first_above(inside, (wanted - before).clamp_min(0))
    chosen = masses.gather(-1, tokens).double().log() - cumulative[:, -1:].log()
    return tokens.squeeze(-1), chosen.squeeze(-1)


def _first_above(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """[N, 1], the first place of each row whose cumulated mass exceeds what is wanted; the last place with any mass where
    rounding has put the wanted one past the end."""
    last = cumulative[:, -1:]
    return torch.searchsorted(cumulative, torch.minimum(wanted, last.nextafter(torch.zeros_like(last))), right=True)


def random_streams(
    prompts: Sequence[Prompt], samples_per_prompt: int, seed: Sequence[int], length: int
) -> list[np.ndarray]:
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
