"""Attention for packed sequences, plugged into transformers' attention interface.

Problem: in reinforcement learning many completions share a prompt. A padded batch computes each prompt once per sample
and spends work on padding.

Idea: concatenate all tokens of a microbatch into one sequence, [1, T]. Only attention has to know which tokens belong
together. ``use_attention`` routes a model's attention to an ``AttentionBackend``: ``PackedAttention`` for training, or
the key-value cache of the sampling engine. The model's configuration selects the implementation by name.

Layout of the tensors: K key-value heads, g query heads per key-value head (H = K g), T tokens, D head dimension.
Queries are [K, g, T, D]; keys and values are [K, T, D]; outputs are [T, K, g, D].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from burnish.policies.kernels.compiled_attention import CompiledAttention, fits_loop
from burnish.policies.kernels.flex_packing import fits_flex, flex_packed
from burnish.policies.kernels.spans import GroupSpan

IMPLEMENTATION = "burnish_packed"
WINDOW = "its attention is limited to a window"


class AttentionBackend(Protocol):
    """Attention over a layout of tokens that the backend knows."""

    @property
    def max_text_length(self) -> int:
        """Number of tokens of the longest text, prompt and completion together."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the attention output [T, K, g, D] for queries [K, g, T, D] and keys and values [K, T, D]."""
        ...


class UnsupportedAttention(ValueError):
    """A feature of a model's attention that packed attention does not implement."""


LinearContext = Callable[[], AbstractContextManager[None]]

_CURRENT: ContextVar[tuple[Any, AttentionBackend, LinearContext] | None] = ContextVar("attention", default=None)


@contextmanager
def use_attention(model: Any, backend: AttentionBackend, linear_context: LinearContext) -> Iterator[None]:
    """Run the attention layers of a transformers model (without a peft wrapper) through a backend within this context.

    ``linear_context`` makes a context for the forward pass, which chooses the implementation of linear layers.
    """
    _register()
    config = model.config
    before = config._attn_implementation
    token = _CURRENT.set((model, backend, linear_context))
    config._attn_implementation = IMPLEMENTATION
    try:
        with linear_context():
            yield
    finally:
        config._attn_implementation = before
        _CURRENT.reset(token)


def current_attention() -> Callable[[], AbstractContextManager[None]]:
    """Return a function that makes a context with the attention that is in use now.

    The backward pass of gradient checkpointing runs layers again after ``use_attention`` has ended.
    """
    current = _CURRENT.get()
    return nullcontext if current is None else partial(use_attention, *current)


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _no_mask)


def _no_mask(*args: Any, **options: Any) -> None:
    """Return no mask: the backend decides which tokens attend to which."""


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    """Return [1, T, H, D] and None, by transformers' contract, for query [1, H, T, D], key and value [1, K, T, D]."""
    backend = _backend()
    for name, option in options.items():
        # A tensor changes the scores (a bias, sinks) or selects keys (blocks of a sparse attention).
        if (isinstance(option, Tensor) and name != "position_ids") or (name == "softcap" and option is not None):
            raise UnsupportedAttention(f"its attention has {name}")
    window = options.get("sliding_window")
    if window is not None and backend.max_text_length > window:
        raise UnsupportedAttention(f"{WINDOW} of {window} tokens")
    if query.shape[0] != 1:
        raise UnsupportedAttention("its layers change the batch dimension")
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    keys, values = key[0], value[0]
    queries = query[0].view(keys.shape[0], -1, *query.shape[2:])
    attended = backend.attend(queries, keys, values, scale)
    return attended.flatten(1, 2).unsqueeze(0), None


def dispatch_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return the output [T, K, g, D] of the current backend for queries [K, g, T, D], keys and values [K, T, D]."""
    return _backend().attend(queries, keys, values, scale)


def _backend() -> AttentionBackend:
    current = _CURRENT.get()
    assert current is not None, "only use_attention() selects this implementation"
    return current[1]


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Differentiable attention within the spans of one packed sequence."""

    spans: tuple[GroupSpan, ...]

    @property
    def max_text_length(self) -> int:
        return max(
            span.stop - span.start + max((stop - start for start, stop in span.completions), default=0)
            for span in self.spans
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        device = value.device.type
        if torch.is_autocast_enabled(device):  # rotary positions have made queries and keys float32
            with torch.autocast(device, enabled=False):
                return self.attend(query.to(value.dtype), key.to(value.dtype), value, scale)
        if fits_flex(query, value):
            return flex_packed(query, key, value, self.spans, scale)
        function = CompiledAttention if fits_loop(query, key, value) else SharedPrefixAttention
        output: Tensor = function.apply(query, key, value, self.spans, scale)  # type: ignore[no-untyped-call]
        return output


class SharedPrefixAttention(torch.autograd.Function):
    """Softmax attention of prompts (causal) and of completions (to their prompt, and causally to themselves).

    A completion's attention has two parts, over the prompt's keys and over its own keys, which are merged by the
    log-sum-exp of their scores (the normaliser). The backward pass of softmax attention needs only the output and the
    normaliser (FlashAttention, arXiv 2205.14135, appendix B.4). With the merged output and normaliser, the backward
    pass of each part therefore gives its exact contribution to the gradient. Keys and values are repeated neither for
    their g query heads nor for the G samples of a prompt.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[GroupSpan], scale: float
    ) -> Tensor:
        """Return [T, K, g, D] for query [K, g, T, D], key and value [K, T, D]."""
        heads, group, length, _ = query.shape
        out = query.new_empty(length, heads, group, value.shape[-1])
        normaliser = query.new_empty(length, heads, group, dtype=_wide(query))
        for span in spans:
            for texts in _equal_texts(span):
                own = texts.positions
                queries, keys, values = (texts.to_batch(tensor[..., own, :]) for tensor in (query, key, value))
                part_out, part_normaliser = _attend(queries, keys, values, True, scale)
                out[own] = texts.from_batch(part_out).movedim(2, 0)
                normaliser[own] = texts.from_batch(part_normaliser.unsqueeze(-1)).squeeze(-1).movedim(2, 0)
            first, last = _extent(span)
            if last > first:
                prompt = slice(span.start, span.stop)
                part = _attend(query[:, :, first:last], key[:, prompt], value[:, prompt], False, scale)
                _merge(out[first:last], normaliser[first:last], *part)
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, normaliser = ctx.saved_tensors
        query_grad, key_grad, value_grad = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        grad, out, normaliser = (tensor.movedim(0, 2) for tensor in (grad, out, normaliser))

        def part_grads(queries: slice, keys: slice, causal: bool, texts: _EqualTexts) -> tuple[Tensor, Tensor, Tensor]:
            grads = _attend_backward(
                texts.to_batch(grad[:, :, queries]), texts.to_batch(query[:, :, queries]), texts.to_batch(key[:, keys]),
                texts.to_batch(value[:, keys]), texts.to_batch(out[:, :, queries]),
                texts.to_batch(normaliser[:, :, queries].unsqueeze(-1)).squeeze(-1), causal, ctx.scale,
            )  # fmt: skip
            return texts.from_batch(grads[0]), texts.from_batch(grads[1]), texts.from_batch(grads[2])

        for span in ctx.spans:
            for texts in _equal_texts(span):
                own = texts.positions
                query_grad[:, :, own], key_grad[:, own], value_grad[:, own] = part_grads(own, own, True, texts)
            first, last = _extent(span)
            if last > first:
                prompt, rest = slice(span.start, span.stop), slice(first, last)
                query_part, key_part, value_part = part_grads(rest, prompt, False, _EqualTexts(first, 1, last - first))
                query_grad[:, :, rest] += query_part
                key_grad[:, prompt] += key_part
                value_grad[:, prompt] += value_part
        return query_grad, key_grad, value_grad, None, None


def _extent(span: GroupSpan) -> tuple[int, int]:
    """Return the positions (start, stop) of all completions of a span together."""
    return span.stop, max((stop for _, stop in span.completions), default=span.stop)


@dataclass(frozen=True, slots=True)
class _EqualTexts:
    """Adjacent texts of equal length, which one kernel call handles as a batch."""

    start: int
    count: int
    length: int

    @property
    def positions(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)

    def to_batch(self, tensor: Tensor) -> Tensor:
        """Reshape [K, ..., count L, D] to [count K, ..., L, D]; no copy for a single text."""
        if self.count == 1:
            return tensor
        split = tensor.view(*tensor.shape[:-2], self.count, self.length, tensor.shape[-1])
        return split.movedim(-3, 0).flatten(0, 1)

    def from_batch(self, tensor: Tensor) -> Tensor:
        """Invert ``to_batch``."""
        if self.count == 1:
            return tensor
        split = tensor.reshape(self.count, -1, *tensor.shape[1:])
        return split.movedim(0, -3).flatten(-3, -2)


def _equal_texts(span: GroupSpan) -> list[_EqualTexts]:
    """Return the prompt, and its completions with adjacent ones of equal length together."""
    batches = [_EqualTexts(span.start, 1, span.stop - span.start)]
    for start, stop in span.completions:
        last = batches[-1]
        if len(batches) > 1 and last.length == stop - start:
            batches[-1] = _EqualTexts(last.start, last.count + 1, last.length)
        else:
            batches.append(_EqualTexts(start, 1, stop - start))
    return batches


def _merge(out: Tensor, normaliser: Tensor, other: Tensor, other_normaliser: Tensor) -> None:
    """Merge a second softmax attention over disjoint keys into the first, in place.

    Outputs are [S, K, g, D] and [K, g, S, D], the log-sum-exps of their scores [S, K, g] and [K, g, S].
    """
    other, other_normaliser = other.movedim(2, 0), other_normaliser.movedim(2, 0)
    total = torch.logaddexp(normaliser, other_normaliser)
    out.mul_((normaliser - total).exp_().unsqueeze(-1))
    out.addcmul_(other, (other_normaliser - total).exp_().unsqueeze(-1))
    normaliser.copy_(total)


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the attention [K, g, S, D] of queries over keys and values, and the log-sum-exp of the scores [K, g, S].

    The latter is at least float32: rounded to bfloat16 it would change the attention weights by several percent.
    """
    if query.device.type == "cpu":
        # The kernel accepts strides of zero, so the repeats over g take no memory.
        shape = (key.shape[0], query.shape[1], key.shape[1], key.shape[2])
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key.unsqueeze(1).expand(shape), value.unsqueeze(1).expand(*shape[:3], value.shape[-1]),
            0.0, causal, scale=scale,
        )  # fmt: skip
        return out, normaliser.to(_wide(query))
    return eager_attention(query, key, value, causal, scale)


def _attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, normaliser: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query [K, g, S, D], key and value [K, T, D]."""
    if query.device.type == "cpu":
        shape = (key.shape[0], query.shape[1], key.shape[1], key.shape[2])
        query_grad, key_grad, value_grad = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key.unsqueeze(1).expand(shape), value.unsqueeze(1).expand(*shape[:3], value.shape[-1]),
            out, normaliser, 0.0, causal, scale=scale,
        )  # fmt: skip
        return query_grad, key_grad.sum(1), value_grad.sum(1)
    return eager_attention_backward(grad, query, key, value, out, normaliser, causal, scale)


def eager_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Compute ``_attend`` by plain tensor operations in at least float32, for devices without the fused CPU kernel."""
    wide = _wide(query)
    scores = _scores(query.to(wide), key.to(wide), causal, scale)
    normaliser = scores.logsumexp(-1)
    out = (scores - normaliser.unsqueeze(-1)).exp() @ value.to(wide).unsqueeze(1)
    return out.to(value.dtype), normaliser


def eager_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, normaliser: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``_attend_backward`` by plain tensor operations.

    With attention weights P and output O: dV = P^T dO, dS = P (dO V^T - sum(dO O)), dQ = dS K, dK = dS^T Q.
    """
    dtype = query.dtype
    grad, query, key, value, out = (tensor.to(_wide(query)) for tensor in (grad, query, key, value, out))
    weights = (_scores(query, key, causal, scale) - normaliser.unsqueeze(-1)).exp()
    score_grad = weights * (grad @ value.unsqueeze(1).mT - (grad * out).sum(-1, keepdim=True)) * scale
    key_grad = (score_grad.mT @ query).sum(1)
    query_grad, value_grad = score_grad @ key.unsqueeze(1), (weights.mT @ grad).sum(1)
    return query_grad.to(dtype), key_grad.to(dtype), value_grad.to(dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    scores = query @ key.unsqueeze(1).mT * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores
