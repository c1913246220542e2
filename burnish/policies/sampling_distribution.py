"""Sampling distribution, and draws from it.

The sampler and the trainer use the same functions, so the log-probabilities that the trainer differentiates are those
of the distribution that was sampled from. Letters: N rows, V vocabulary size.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.top_p_mask import masked_logprobs, top_p_set
from burnish.errors import InputError
from burnish.types import Prompt, SamplingParams, TokenStats

TOP = 1024
"""Number of most probable tokens that a truncated distribution is first searched in."""
BLOCK = 128
"""Tokens per block, whose probabilities are summed before the search of a draw."""


def is_truncated(sampling: SamplingParams) -> bool:
    """Return whether some tokens may have probability zero."""
    return _has_cut(sampling) or sampling.min_new_tokens > 0 or sampling.lagged_top_p < 1


def _has_cut(sampling: SamplingParams) -> bool:
    return sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0


def check_token_ids(stop_token_ids: Iterable[int], vocabulary: int) -> None:
    """Raise InputError if one of ``sampling.stop_token_ids`` is not a token of the model."""
    for token in stop_token_ids:
        if token >= vocabulary:
            raise InputError(
                f"sampling.stop_token_ids: the model has no token {token}, its {vocabulary} tokens begin at 0: remove it"
            )


@dataclass(frozen=True, slots=True)
class EarlyEnds:
    """End tokens ``ids`` [E] that have probability zero in the ``rows`` [N] (bool) of a text's first tokens.

    ``checked`` says that all of them are tokens.
    """

    rows: Tensor
    ids: Tensor
    checked: bool = False

    def __getitem__(self, rows: slice) -> EarlyEnds:
        return EarlyEnds(self.rows[rows], self.ids, self.checked)

    def mask_(self, values: Tensor, value: float) -> Tensor:
        """Replace ``values`` [N, V] of these tokens, in place."""
        # A file may name an end that is not a token.
        ids = self.ids if self.checked else self.ids[self.ids < values.shape[-1]]
        values[:, ids] = values[:, ids].masked_fill(self.rows[:, None], value)
        return values


def early_ends(
    lengths: Sequence[Iterable[int]], ends: Iterable[int], sampling: SamplingParams, device: torch.device
) -> EarlyEnds | None:
    """Return the end tokens that come too early in N rows; None if there are none.

    ``lengths`` are, for each text, the numbers of its tokens before each row: ``[range(len(ids)) for ids in ...]``.
    """
    if sampling.min_new_tokens == 0:
        return None
    early = [length < sampling.min_new_tokens for text in lengths for length in text]
    ids = sorted(ends)
    if not any(early) or not ids:
        return None
    return EarlyEnds(torch.tensor(early, device=device), torch.tensor(ids, device=device))


def sampling_logprobs(
    logits: Tensor,
    sampling: SamplingParams,
    always: Tensor | None = None,
    lagged: Tensor | None = None,
    early: EarlyEnds | None = None,
) -> Tensor:
    """Return the log-probabilities [..., V] of the sampling distribution; minus infinity for truncated tokens.

    The set of kept tokens is piecewise constant in the logits, so the gradient is that of the truncated distribution.

    Args:
        always, early: as in ``kept_tokens``.
        lagged: [..., V], logits of the lagged policy, if ``sampling`` needs them.
    """
    scaled = logits / sampling.temperature if sampling.temperature != 1 else logits
    if _has_cut(sampling) or early is not None:
        scaled = scaled.masked_fill(~kept_tokens(scaled.detach(), sampling, always, early), float("-inf"))
    if sampling.lagged_top_p < 1:
        return masked_logprobs(scaled, _lagged(lagged, sampling), sampling.lagged_top_p, always)
    return scaled.log_softmax(-1)


def _lagged(logits: Tensor | None, sampling: SamplingParams) -> Tensor:
    """Return the lagged policy's logits [..., V] divided by the temperature."""
    if logits is None:
        raise InputError("sampling.nlpo_top_p needs a lagged policy, which this policy does not have: remove it")
    return logits / sampling.temperature


def token_stats(
    logits: Tensor,
    tokens: Tensor,
    sampling: SamplingParams,
    *,
    lagged: Tensor | None = None,
    early: EarlyEnds | None = None,
    entropy_gradient: bool,
) -> TokenStats:
    """Return the statistics of tokens [T] under the sampling distribution of ``logits`` [T, V], on the CPU."""
    logprobs = sampling_logprobs(logits, sampling, always=tokens, lagged=lagged, early=early)
    chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    kept = logprobs if entropy_gradient else logprobs.detach()
    # A truncated token and its gradient count 0; torch.special.entr would give infinity times 0.
    entropy = -(kept.exp() * kept.masked_fill(kept == -torch.inf, 0.0)).sum(-1)
    log_mass = None
    if is_truncated(sampling):
        full = (logits / sampling.temperature).log_softmax(-1)
        log_mass = (full.gather(-1, tokens[:, None]).squeeze(-1) - chosen).cpu()
    return TokenStats(chosen.cpu(), entropy.cpu(), log_mass)


def kept_tokens(
    scaled: Tensor,
    sampling: SamplingParams,
    always: Tensor | None = None,
    early: EarlyEnds | None = None,
    *,
    static: bool = False,
) -> Tensor:
    """Return which tokens can be drawn, [..., V] bool.

    Ties at the edge of the set go to the lower token id, so the set does not depend on the batch.

    Args:
        scaled: [..., V], logits divided by the temperature.
        always: [...], token ids that are always kept. The trainer passes the sampled tokens: they were kept when they
            were sampled, and a rounding error at the edge of the set must not make them impossible now.
        early: end tokens that come too early; the other limits apply to what they leave.
        static: sort every row, so that no operation depends on a number: a GPU need not be waited for.
    """
    rows = scaled.reshape(-1, scaled.shape[-1])
    if early is not None:
        rows = early.mask_(rows.clone(), float("-inf"))
    if static and (sampling.top_p < 1 or sampling.top_k > 0):
        keep = _kept_by_sorting(rows, sampling)
    elif sampling.top_p < 1 or sampling.top_k > 0:
        keep, open_rows = _kept_among_the_top(rows, sampling)
        if len(open_rows):
            keep[open_rows] = _kept_by_sorting(rows[open_rows], sampling)
    else:
        keep = torch.ones_like(rows, dtype=torch.bool)
    if sampling.min_p > 0:
        keep &= rows >= rows.amax(-1, keepdim=True) + math.log(sampling.min_p)
    if early is not None:
        early.mask_(keep, False)
    if always is not None:
        keep.scatter_(-1, always.reshape(-1, 1), True)
    return keep.view(scaled.shape)


def _kept_among_the_top(rows: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Search the kept sets in each row's most probable tokens; sorting the whole vocabulary takes many times as long.

    Returns the sets [N, V], and the indices of the rows that need sorting: their set is larger, or ties cross its edge.
    """
    count = min(TOP, rows.shape[-1])
    ordered = rows.topk(count, -1).values
    if sampling.top_k > 0:
        ordered = ordered[:, : sampling.top_k]
    number = torch.full((len(rows),), ordered.shape[1], device=rows.device)
    settled = number.new_full((len(rows),), sampling.top_k <= count or count == rows.shape[-1], dtype=torch.bool)
    if sampling.top_p < 1:
        # top_p is a fraction of the mass that top_k has kept, as in transformers.
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
    """Return the kept sets [N, V] bool by sorting each row."""
    ordered, order = rows.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k > 0:
        keep[..., sampling.top_k :] = False
    if sampling.top_p < 1:
        mass = ordered.masked_fill(~keep, float("-inf")).double().softmax(-1)
        keep &= mass.cumsum(-1) - mass < sampling.top_p
    return torch.zeros_like(keep).scatter(-1, order, keep)


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Return one token per row [N], the first whose cumulated mass exceeds u * total; never one of probability zero.

    Args:
        scores: [N, V], logits or log-probabilities.
        uniforms: u, [N], float64 in [0, 1).
    """
    return _draw((scores - scores.amax(-1, keepdim=True)).exp_(), uniforms)[0]


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor,
    sampling: SamplingParams,
    lagged: Tensor | None = None,
    early: EarlyEnds | None = None,
    *,
    static: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return tokens [N] drawn from the sampling distribution, their log-probabilities [N], nats, float64, and where it is
    truncated the log of the probability [N] that the full softmax gives to the kept tokens.

    Args:
        logits: [N, V], at least float32, not yet divided by the temperature. Overwritten.
        uniforms: [N], float64 in [0, 1).
        lagged: [N, V], logits of the lagged policy, if ``sampling`` needs them.
        early, static: as in ``kept_tokens``.
    """
    if sampling.temperature != 1:
        logits = logits.div_(sampling.temperature)
    if not is_truncated(sampling):
        return *_draw(logits.sub_(logits.amax(-1, keepdim=True)).exp_(), uniforms), None
    top, whole = _log_sum(logits)
    if _has_cut(sampling) or early is not None:
        logits = logits.masked_fill_(~kept_tokens(logits, sampling, early=early, static=static), float("-inf"))
    if sampling.lagged_top_p < 1:
        logits = logits.masked_fill_(~top_p_set(_lagged(lagged, sampling), sampling.lagged_top_p), float("-inf"))
    kept_top, kept = _log_sum(logits)
    log_mass = (kept - whole) + (kept_top - top).double().squeeze(-1)
    return *_draw(logits.sub_(kept_top).exp_(), uniforms), log_mass


def _log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each row [N, 1], and the log of the sum of exp(logit - largest) [N], float64."""
    top = logits.amax(-1, keepdim=True)
    return top, (logits - top).exp_().sum(-1).double().log()


def _draw(masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens [N] and their log-probabilities [N], float64, for unnormalised masses [N, V].

    The search is first among sums of blocks of tokens, then within a block, so it reads the vocabulary once and in the
    masses' own precision.
    """
    size = masses.shape[-1]
    short = -size % BLOCK
    if short:
        masses = torch.nn.functional.pad(masses, (0, short))
    blocks = masses.view(len(masses), -1, BLOCK)
    sums = blocks.sum(-1).double()
    cumulative = sums.cumsum(-1)
    wanted = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    # Masses that are not numbers have no first index above: any token is drawn, and its log-probability is not a number.
    block = _first_above(cumulative, wanted).clamp_(max=cumulative.shape[-1] - 1)
    before = (cumulative - sums).gather(-1, block)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(-1)
    tokens = (block * BLOCK + _first_above(inside, (wanted - before).clamp_min(0))).clamp_(max=size - 1)
    logprobs = masses.gather(-1, tokens).double().log() - cumulative[:, -1:].log()
    return tokens.squeeze(-1), logprobs.squeeze(-1)


def _first_above(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """Return [N, 1], the first index of each row whose cumulated mass exceeds ``wanted``.

    If rounding has moved ``wanted`` past the end, it is the last index with any mass.
    """
    last = cumulative[:, -1:]
    return torch.searchsorted(cumulative, torch.minimum(wanted, last.nextafter(torch.zeros_like(last))), right=True)


def random_streams(
    prompts: Sequence[Prompt], samples_per_prompt: int, seed: Sequence[int], length: int
) -> list[np.ndarray]:
    """Return the random numbers of P*G samples, prompt by prompt: [length], float64 in [0, 1) each.

    A sample's numbers depend on the seed, its prompt's id and its index only, not on the rest of the batch. A prompt
    that occurs twice has other numbers the second time.
    """
    seen: Counter[str] = Counter()
    streams = []
    for prompt in prompts:
        first = seen[prompt.id] * samples_per_prompt
        seen[prompt.id] += 1
        streams += [random_stream(prompt, first + index, seed, length) for index in range(samples_per_prompt)]
    return streams


def random_stream(prompt: Prompt, number: int, seed: Sequence[int], length: int) -> np.ndarray:
    """Return the random numbers [length] of one sample of a prompt; the first ones do not depend on the length.

    ``number`` counts the samples of all the prompt's occurrences in a call of ``Sampler.sample``, from 0.
    """
    digest = hashlib.sha256(prompt.id.encode()).digest()
    words = [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]
    philox = np.random.Philox(np.random.SeedSequence([*seed, *words, number]))
    return np.random.Generator(philox).random(length)
