"""Attention for tokens that are laid out without padding, through transformers' attention interface.

A model is called with all tokens in one row, [1, T]. Embeddings, norms, products and position embeddings do not care which
text a token belongs to; attention alone does, and asks the backend of ``use_attention``: a training pack, or the caches of
the sampling engine. Nothing of a model is patched: the implementation is chosen by its name in the model's configuration.
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

NAME = "burnish_packed"


class Attending(Protocol):
    """Who knows which token sees which."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text, prompt and completion together."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Queries [K, g, T, D] of g heads for each of K key-value heads, keys and values [K, T, D]; returns [T, K, g, D]."""
        ...


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """A prompt and its completions in a packed row: the prompt first, the completions after it, one behind the other.

    Attributes:
        start, stop: where the prompt lies.
        completions: (start, stop) of each; they see the prompt and themselves, causally.
    """

    start: int
    stop: int
    completions: tuple[tuple[int, int], ...]


class UnsupportedAttention(ValueError):
    """A model asks attention for something that the packed form does not have."""


Multiplying = Callable[[], AbstractContextManager[None]]

_ATTENDING: ContextVar[tuple[Any, Attending, Multiplying] | None] = ContextVar("attending", default=None)


@contextmanager
def use_attention(model: Any, how: Attending, products: Multiplying) -> Iterator[None]:
    """Inside, the attention layers of a transformers model ask ``how``; ``products`` says how it multiplies."""
    _register()
    config = model.config
    before = config._attn_implementation
    token = _ATTENDING.set((model, how, products))
    config._attn_implementation = NAME
    try:
        with products():
            yield
    finally:
        config._attn_implementation = before
        _ATTENDING.reset(token)


def current_attention() -> Callable[[], AbstractContextManager[None]]:
    """Gives back, later, what is attending now; nothing where nobody is."""
    found = _ATTENDING.get()
    return nullcontext if found is None else partial(use_attention, *found)


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)


def _no_mask(*args: Any, **options: Any) -> None:
    """Who sees whom is not a matter of masks here."""


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' contract: query [1, H, T, D], key and value [1, K, T, D]; returns [1, T, H, D]."""
    how = _who()
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UnsupportedAttention(f"its attention has {name}")
    window = options.get("sliding_window")
    if window is not None and how.longest > window:
        raise UnsupportedAttention(f"its attention sees no further than {window} tokens")
    if query.shape[0] != 1:
        raise UnsupportedAttention("its layers see another batch than the model was given")
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    keys, values = key[0], value[0]
    queries = query[0].view(keys.shape[0], -1, *query.shape[2:])
    attended = how.attend(module.layer_idx, queries, keys, values, scale)
    return attended.flatten(1, 2).unsqueeze(0), None


def dispatch_attention(layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Asks what is ``use_attention``: queries [K, g, T, D], keys and values [K, T, D]; returns [T, K, g, D]."""
    return _who().attend(layer, queries, keys, values, scale)


def _who() -> Attending:
    found = _ATTENDING.get()
    assert found is not None, "the implementation is chosen by use_attention() alone"
    return found[1]


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Attends within the spans of one packed row, with gradient."""

    spans: tuple[GroupSpan, ...]

    @property
    def longest(self) -> int:
        return max(
            span.stop - span.start + max((stop - start for start, stop in span.completions), default=0)
            for span in self.spans
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        found: Tensor = SharedPrefixAttention.apply(query, key, value, self.spans, scale)  # type: ignore[no-untyped-call]
        return found


class SharedPrefixAttention(torch.autograd.Function):
    """Softmax attention of prompts, causal, and of completions over their prompt and themselves.

    A completion's attention is computed in two parts, over the prompt's keys and over its own, and merged by the
    logarithms of their normalisers. The backward pass of softmax attention needs the output and the normaliser alone
    (FlashAttention, arXiv 2205.14135, appendix B.4), so that each part's backward pass, given the merged ones, yields that
    part's share of the exact gradient. Keys and values are neither repeated for their g query heads nor for G samples.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[GroupSpan], scale: float
    ) -> Tensor:
        """query [K, g, T, D], key and value [K, T, D]; returns [T, K, g, D]."""
        heads, group, length, _ = query.shape
        out = query.new_empty(length, heads, group, value.shape[-1])
        normaliser = query.new_empty(length, heads, group, dtype=_wide(query))
        for span in spans:
            for run in _runs(span):
                own = run.place
                seen, seen_normaliser = _attend(
                    run.fold(query[:, :, own]), run.fold(key[:, own]), run.fold(value[:, own]), True, scale
                )
                out[own] = run.unfold(seen).movedim(2, 0)
                normaliser[own] = run.unfold(seen_normaliser.unsqueeze(-1)).squeeze(-1).movedim(2, 0)
            first, last = _extent(span)
            if last > first:
                prompt = slice(span.start, span.stop)
                seen, seen_normaliser = _attend(query[:, :, first:last], key[:, prompt], value[:, prompt], False, scale)
                _merge(out[first:last], normaliser[first:last], seen, seen_normaliser)
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, normaliser = ctx.saved_tensors
        query_grad, key_grad, value_grad = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        grad, out, normaliser = (tensor.movedim(0, 2) for tensor in (grad, out, normaliser))

        def part(queries: slice, keys: slice, causal: bool, run: _Run) -> tuple[Tensor, Tensor, Tensor]:
            found = _attend_backward(
                run.fold(grad[:, :, queries]), run.fold(query[:, :, queries]), run.fold(key[:, keys]),
                run.fold(value[:, keys]), run.fold(out[:, :, queries]),
                run.fold(normaliser[:, :, queries].unsqueeze(-1)).squeeze(-1), causal, ctx.scale,
            )  # fmt: skip
            return run.unfold(found[0]), run.unfold(found[1]), run.unfold(found[2])

        for span in ctx.spans:
            for run in _runs(span):
                own = run.place
                query_grad[:, :, own], key_grad[:, own], value_grad[:, own] = part(own, own, True, run)
            first, last = _extent(span)
            if last > first:
                prompt, rest = slice(span.start, span.stop), slice(first, last)
                from_query, from_key, from_value = part(rest, prompt, False, _Run(first, 1, last - first))
                query_grad[:, :, rest] += from_query
                key_grad[:, prompt] += from_key
                value_grad[:, prompt] += from_value
        return query_grad, key_grad, value_grad, None, None


def _extent(span: GroupSpan) -> tuple[int, int]:
    """Where a span's completions lie, all together."""
    return span.stop, max((stop for _, stop in span.completions), default=span.stop)


@dataclass(frozen=True, slots=True)
class _Run:
    """Texts of one length that lie one behind the other: one call for all of them."""

    start: int
    count: int
    length: int

    @property
    def place(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)

    def fold(self, tensor: Tensor) -> Tensor:
        """[K, ..., count L, D] -> [count K, ..., L, D]; no copy where there is one text."""
        if self.count == 1:
            return tensor
        split = tensor.view(*tensor.shape[:-2], self.count, self.length, tensor.shape[-1])
        return split.movedim(-3, 0).flatten(0, 1)

    def unfold(self, tensor: Tensor) -> Tensor:
        """The other way."""
        if self.count == 1:
            return tensor
        split = tensor.reshape(self.count, -1, *tensor.shape[1:])
        return split.movedim(0, -3).flatten(-3, -2)


def _runs(span: GroupSpan) -> list[_Run]:
    """The prompt, and its completions with neighbours of one length together."""
    found = [_Run(span.start, 1, span.stop - span.start)]
    for start, stop in span.completions:
        last = found[-1]
        if len(found) > 1 and last.length == stop - start:
            found[-1] = _Run(last.start, last.count + 1, last.length)
        else:
            found.append(_Run(start, 1, stop - start))
    return found


def _merge(out: Tensor, normaliser: Tensor, other: Tensor, other_normaliser: Tensor) -> None:
    """Makes one softmax of two over disjoint keys: out [S, K, g, D] in place, other [K, g, S, D]."""
    other, other_normaliser = other.movedim(2, 0), other_normaliser.movedim(2, 0)
    total = torch.logaddexp(normaliser, other_normaliser)
    out.mul_((normaliser - total).exp_().unsqueeze(-1))
    out.addcmul_(other, (other_normaliser - total).exp_().unsqueeze(-1))
    normaliser.copy_(total)


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of [K, g, S, D] over [K, T, D]: output [K, g, S, D] and the logarithm of the normaliser [K, g, S], at least
    float32: in bfloat16 it would change the weights by percents."""
    if query.device.type == "cpu":
        # Strides of zero stand for the repeats over g, which the kernel takes.
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
    """Gradients of query [K, g, S, D], key and value [K, T, D]."""
    if query.device.type == "cpu":
        shape = (key.shape[0], query.shape[1], key.shape[1], key.shape[2])
        by_query, by_key, by_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key.unsqueeze(1).expand(shape), value.unsqueeze(1).expand(*shape[:3], value.shape[-1]),
            out, normaliser, 0.0, causal, scale=scale,
        )  # fmt: skip
        return by_query, by_key.sum(1), by_value.sum(1)
    return eager_attention_backward(grad, query, key, value, out, normaliser, causal, scale)


def eager_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """``_attend`` in plain tensor operations of at least float32, for devices without the fused kernel."""
    wide = _wide(query)
    scores = _scores(query.to(wide), key.to(wide), causal, scale)
    normaliser = scores.logsumexp(-1)
    out = (scores - normaliser.unsqueeze(-1)).exp() @ value.to(wide).unsqueeze(1)
    return out.to(value.dtype), normaliser


def eager_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, normaliser: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With P the attention weights and O the output: dV = P'dO, dS = P (dO V' - sum(dO O)), dQ = dS K, dK = dS'Q."""
    narrow = query.dtype
    grad, query, key, value, out = (tensor.to(_wide(query)) for tensor in (grad, query, key, value, out))
    weights = (_scores(query, key, causal, scale) - normaliser.unsqueeze(-1)).exp()
    by_score = weights * (grad @ value.unsqueeze(1).mT - (grad * out).sum(-1, keepdim=True)) * scale
    by_key = (by_score.mT @ query).sum(1)
    by_query, by_value = by_score @ key.unsqueeze(1), (weights.mT @ grad).sum(1)
    return by_query.to(narrow), by_key.to(narrow), by_value.to(narrow)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    scores = query @ key.unsqueeze(1).mT * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores
