"""Log-probabilities and entropies of tokens directly from hidden states, in constant memory.

Problem: the logits [T, V] of all tokens are by far the largest tensor of a training step.

Idea: apply the head to a chunk of a few hundred rows at a time. The forward pass stores each row's normaliser
(log-sum-exp) and, if a backward pass may follow, the probabilities of the first chunks. The backward pass recomputes
the logits of the other chunks and propagates their gradient at once.

Letters: T tokens, S rows of a chunk, V vocabulary size, d hidden size.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from burnish.algorithms.table_gradients import adds_to_grad, ensure_grad
from burnish.policies.kernels.linear import PackedWeights, add_weight_grad, current_packed, inputs_grad, multiply
from burnish.policies.sampling_distribution import EarlyEnds, is_truncated, kept_tokens
from burnish.policies.token_rows import TokenRows
from burnish.types import SamplingParams, TokenStats

CHUNK_ELEMENTS = 3 << 22
"""Logits per chunk, 48 MB in float32: 256 rows of 49,152. Smaller chunks slow down the products, larger the rest."""

CACHED_ELEMENTS = 3 << 19
"""Logits per elementwise pass, 6 MB in float32 (32 rows of 49,152), so that they stay in the processor's cache."""

COLUMNS = 4096
"""Vocabulary entries per product of the backward pass on a CPU."""

KEPT_ELEMENTS = 3 << 24
"""Probabilities stored for the backward pass, 192 MB in float32, however many tokens there are."""


def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    sampling: SamplingParams,
    *,
    token_rows: TokenRows | None = None,
    early: EarlyEnds | None = None,
    entropy_gradient: bool = False,
) -> TokenStats:
    """Return the statistics of tokens [T] under the sampling distribution, on the CPU.

    ``hidden`` [T, d] is the state that predicts each token; ``weight`` [V, d] and ``bias`` [V] are those of the head;
    ``token_rows`` are those of its rows that belong to a token (None: all); ``early`` is as in ``kept_tokens``.
    """
    keep = torch.is_grad_enabled()
    arguments = hidden, weight, bias, tokens, sampling, token_rows, early, keep
    logprobs, entropy, log_mass = _FusedLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    entropy = entropy if entropy_gradient else entropy.detach()
    return TokenStats(logprobs.cpu(), entropy.cpu(), None if log_mass is None else log_mass.cpu())


class _FusedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        sampling: SamplingParams,
        token_rows: TokenRows | None,
        early: EarlyEnds | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``keep`` says whether a backward pass may follow; autograd is always off in here."""
        kind = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(tokens), dtype=kind)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        log_mass, whole = (torch.empty_like(logprobs) if is_truncated(sampling) else None for _ in range(2))
        ctx.waiting = []
        """For the first chunks: unnormalised probabilities [S, V], and the divisor [S] of each row."""
        room = KEPT_ELEMENTS if keep and any(ctx.needs_input_grad) else 0
        packed = current_packed()
        for rows in _chunks(len(tokens), len(weight)):
            logits = _scaled_logits(hidden[rows], weight, bias, sampling, token_rows, packed)
            full = None if whole is None else _normaliser(logits)
            kept = _truncate(logits, tokens[rows], sampling, early and early[rows])
            chosen = logits.gather(-1, tokens[rows, None]).squeeze(-1)
            top, total, weighted = _exponentiate(logits, kept)
            room -= logits.numel()
            if room >= 0:
                ctx.waiting.append((logits, total))
            normaliser[rows] = total.log() + top
            logprobs[rows] = chosen - normaliser[rows]
            entropy[rows] = total.log() - weighted / total
            if full is not None and whole is not None and log_mass is not None:
                whole[rows] = full[1].log() + full[0]
                log_mass[rows] = (total.log() - full[1].log()) + (top - full[0])
        ctx.save_for_backward(hidden, weight, bias, tokens, normaliser, entropy, whole)
        ctx.sampling, ctx.token_rows, ctx.early, ctx.adds = sampling, token_rows, early, adds_to_grad(weight)
        ctx.packed = packed
        return logprobs, entropy, log_mass

    @staticmethod
    def backward(
        ctx: Any, by_logprob: Tensor, by_entropy: Tensor, by_mass: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None]:
        hidden, weight, bias, tokens, normaliser, entropy, whole = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if for_hidden else None
        weight_grad = None
        if for_weight:  # summed over chunks in at least float32
            weight_grad = ensure_grad(weight) if ctx.adds else torch.zeros_like(weight, dtype=by_logprob.dtype)
        bias_grad = torch.zeros_like(bias) if for_bias and bias is not None else None
        with_entropy = bool((by_entropy != 0).any())
        if by_mass is not None and not bool((by_mass != 0).any()):
            by_mass = None
        # d log p(chosen) / dl = [chosen] - p, and d log mass / dl = p - q, where q is the full softmax.
        by_kept = by_logprob if by_mass is None else by_logprob - by_mass
        waiting, ctx.waiting = deque(ctx.waiting or ()), None
        for rows in _chunks(len(tokens), len(weight)):
            held = waiting.popleft() if waiting else None
            if held is not None and not with_entropy and by_mass is None:
                grad = held[0].mul_((-by_logprob[rows] / held[1]).unsqueeze(-1))
            else:
                logits = _scaled_logits(hidden[rows], weight, bias, ctx.sampling, ctx.token_rows, ctx.packed)
                full = None if by_mass is None else (logits - whole[rows, None]).exp_()
                kept = _truncate(logits, tokens[rows], ctx.sampling, ctx.early and ctx.early[rows])
                logprobs = logits.sub_(normaliser[rows, None])
                if with_entropy:
                    # dH/dl = -p (log p + H)
                    probabilities = logprobs.exp()
                    surprise = logprobs.add_(entropy[rows, None])
                    surprise = surprise if kept is None else surprise.masked_fill_(~kept, 0.0)
                    grad = probabilities * -(by_kept[rows, None] + by_entropy[rows, None] * surprise)
                else:
                    grad = logprobs.exp_().mul_(-by_kept[rows, None])
                if full is not None and by_mass is not None:
                    grad.sub_(full.mul_(by_mass[rows, None]))
            grad.scatter_add_(-1, tokens[rows, None], by_logprob[rows, None])
            if ctx.sampling.temperature != 1:
                grad.div_(ctx.sampling.temperature)
            grad = grad.to(weight.dtype)
            # A block of columns stays in the processor's cache for both products, and oneDNN reorders one block at a
            # time. The sum over blocks is accumulated in at least float32.
            sums = None if hidden_grad is None else hidden.new_zeros(len(grad), hidden.shape[1], dtype=by_logprob.dtype)
            for columns in _slices(grad.shape[1], COLUMNS if weight.device.type == "cpu" else len(weight)):
                part = grad[:, columns]
                if sums is not None:
                    sums += inputs_grad(part, weight, packed=ctx.packed, part=columns)
                if weight_grad is not None:
                    add_weight_grad(weight_grad[columns], part, hidden[rows])
            if hidden_grad is not None and sums is not None:
                hidden_grad[rows] = sums.to(hidden.dtype)
            if bias_grad is not None:
                bias_grad[: grad.shape[1]] += grad.sum(0)
        if ctx.adds or weight_grad is None:
            return hidden_grad, None, bias_grad, None, None, None, None, None
        return hidden_grad, weight_grad.to(weight.dtype), bias_grad, None, None, None, None, None


def _exponentiate(logits: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Replace logits [S, V] by exp(l - max) in place, a few rows at a time so that they stay in the cache.

    Returns the rows' maxima [S], the sums of exp(l - max) [S], and the sums of (l - max) exp(l - max) [S].
    """
    top, total, weighted = (logits.new_empty(len(logits)) for _ in range(3))
    for rows in _slices(len(logits), max(1, CACHED_ELEMENTS // logits.shape[-1])):
        part = logits[rows]
        top[rows] = part.amax(-1)
        masses = part.sub_(top[rows, None]).exp()
        total[rows] = masses.sum(-1)
        # A truncated token has p = 0 and l = -inf; p l counts as 0.
        finite = part if kept is None else part.masked_fill_(~kept[rows], 0.0)
        weighted[rows] = (masses.unsqueeze(1) @ finite.unsqueeze(2)).flatten()
        part.copy_(masses)
    return top, total, weighted


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    return _slices(rows, max(1, CHUNK_ELEMENTS // vocabulary))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _scaled_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, sampling: SamplingParams, token_rows: TokenRows | None,
    packed: PackedWeights | None = None,
) -> Tensor:  # fmt: skip
    """Return the logits [S, V], at least float32, divided by the temperature.

    V is ``token_rows.count`` if there are padding rows.
    """
    part = None if token_rows is None else slice(0, token_rows.count)
    bias = bias if bias is None or part is None else bias[part]
    logits = multiply(hidden, weight, bias, packed=packed, part=part)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if token_rows is not None:
        logits = token_rows.fill(logits)
    return logits.div_(sampling.temperature) if sampling.temperature != 1 else logits


def _truncate(logits: Tensor, tokens: Tensor, sampling: SamplingParams, early: EarlyEnds | None) -> Tensor | None:
    """Replace the logits [S, V] of tokens that cannot be sampled by minus infinity; return the others (None: all)."""
    if not is_truncated(sampling):
        return None
    kept = kept_tokens(logits, sampling, always=tokens, early=early)
    logits.masked_fill_(~kept, float("-inf"))
    return kept


def _normaliser(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each row [S], and the sum of exp(l - largest) [S]."""
    top, total = (logits.new_empty(len(logits)) for _ in range(2))
    for rows in _slices(len(logits), max(1, CACHED_ELEMENTS // logits.shape[-1])):
        top[rows] = logits[rows].amax(-1)
        total[rows] = (logits[rows] - top[rows, None]).exp_().sum(-1)
    return top, total
