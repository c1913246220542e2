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
from burnish.policies.kernels.linear import linear_forward
from burnish.policies.sampling_distribution import is_truncated, kept_tokens
from burnish.policies.token_rows import TokenRows
from burnish.types import SamplingParams

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
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [T] of tokens [T] and the entropies [T] of the sampling distribution, nats.

    ``hidden`` [T, d] is the state that predicts each token; ``weight`` [V, d] and ``bias`` [V] are those of the head;
    ``token_rows`` are those of its rows that belong to a token (None: all).
    """
    keep = torch.is_grad_enabled()
    arguments = hidden, weight, bias, tokens, sampling, token_rows, keep
    logprobs, entropy = _FusedLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return logprobs, entropy if entropy_gradient else entropy.detach()


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
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """``keep`` says whether a backward pass may follow; autograd is always off in here."""
        kind = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(tokens), dtype=kind)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        ctx.waiting = []
        """For the first chunks: unnormalised probabilities [S, V], and the divisor [S] of each row."""
        room = KEPT_ELEMENTS if keep and any(ctx.needs_input_grad) else 0
        for rows in _chunks(len(tokens), len(weight)):
            logits, kept = _logits(hidden[rows], weight, bias, tokens[rows], sampling, token_rows)
            chosen = logits.gather(-1, tokens[rows, None]).squeeze(-1)
            top, total, weighted = _exponentiate(logits, kept)
            room -= logits.numel()
            if room >= 0:
                ctx.waiting.append((logits, total))
            normaliser[rows] = total.log() + top
            logprobs[rows] = chosen - normaliser[rows]
            entropy[rows] = total.log() - weighted / total
        ctx.save_for_backward(hidden, weight, bias, tokens, normaliser, entropy)
        ctx.sampling, ctx.token_rows, ctx.adds = sampling, token_rows, adds_to_grad(weight)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, by_logprob: Tensor, by_entropy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias, tokens, normaliser, entropy = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if for_hidden else None
        weight_grad = (ensure_grad(weight) if ctx.adds else torch.zeros_like(weight)) if for_weight else None
        bias_grad = torch.zeros_like(bias) if for_bias and bias is not None else None
        with_entropy = bool((by_entropy != 0).any())
        waiting, ctx.waiting = deque(ctx.waiting or ()), None
        for rows in _chunks(len(tokens), len(weight)):
            held = waiting.popleft() if waiting else None
            if held is not None and not with_entropy:
                grad = held[0].mul_((-by_logprob[rows] / held[1]).unsqueeze(-1))
            else:
                logits, kept = _logits(hidden[rows], weight, bias, tokens[rows], ctx.sampling, ctx.token_rows)
                logprobs = logits.sub_(normaliser[rows, None])
                if with_entropy:
                    # dH/dl = -p (log p + H)
                    probabilities = logprobs.exp()
                    surprise = logprobs.add_(entropy[rows, None])
                    surprise = surprise if kept is None else surprise.masked_fill_(~kept, 0.0)
                    grad = probabilities * -(by_logprob[rows, None] + by_entropy[rows, None] * surprise)
                else:
                    grad = logprobs.exp_().mul_(-by_logprob[rows, None])
            # d log p(chosen) / dl = [chosen] - p
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
                    sums += linear_forward(part, weight[columns].t())
                if weight_grad is not None:
                    weight_grad[columns] += linear_forward(part.t(), hidden[rows].t())
            if hidden_grad is not None and sums is not None:
                hidden_grad[rows] = sums.to(hidden.dtype)
            if bias_grad is not None:
                bias_grad[: grad.shape[1]] += grad.sum(0)
        return hidden_grad, None if ctx.adds else weight_grad, bias_grad, None, None, None, None


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


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    sampling: SamplingParams,
    token_rows: TokenRows | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the scaled logits [S, V], at least float32, and which tokens can be sampled (None: all).

    V is ``token_rows.count`` if there are padding rows. The logit of a token that cannot be sampled is minus infinity.
    """
    if token_rows is not None:
        weight, bias = weight[: token_rows.count], None if bias is None else bias[: token_rows.count]
    logits = linear_forward(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if token_rows is not None:
        logits = token_rows.fill(logits)
    if sampling.temperature != 1:
        logits = logits.div_(sampling.temperature)
    if not is_truncated(sampling):
        return logits, None
    kept = kept_tokens(logits, sampling, always=tokens)
    return logits.masked_fill_(~kept, float("-inf")), kept
