"""Cheap results that the backward pass makes again instead of keeping them.

Between its products a language model multiplies states with states, element by element: a gate with what it lets through, a
norm's result with its weight. autograd keeps the factors and, for the product behind, the result too; and the gate's
activation beside what it was computed from. Made again from what is kept in any case, by the same operations and so to
the same bits, they need not be kept: half of what a Llama keeps for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Again = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A function, and the tensors that it makes a result from once more."""

_MULTIPLY = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
_ACTIVATIONS = {torch.nn.functional.silu, torch.nn.functional.gelu, torch.nn.functional.relu}
_AGAIN = "_burnish_again"
"""The attribute of a result that says how it is made again; it goes with the result."""
MAX_FACTORS = 4
"""A longer chain of factors would be multiplied anew too often."""


def get_recomputation(result: Tensor) -> Again | None:
    """How a result of ``elementwise`` can be made again, if it can: not where it, or a part, was changed in place since."""
    how: Callable[..., Tensor]
    how, parts, versions = getattr(result, _AGAIN, (_itself, (), None))
    return (how, parts) if versions == [one._version for one in (result, *parts)] else None


def apply_elementwise(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What ``func`` gives; where a gradient is wanted and it is one of these, the result knows how it is made again."""
    if not torch.is_grad_enabled():
        return func(*args, **options)
    if func in _ACTIVATIONS and len(args) == 1 and not options.get("inplace"):
        found = func(*args, **options)
        _remember(found, partial(func, **options), args)
        return found
    if func in _MULTIPLY and len(args) == 2 and not options and all(isinstance(one, Tensor) for one in args):
        made = [get_recomputation(one) or (_itself, (one,)) for one in args]
        (first, left), (second, right) = made
        if len(left) + len(right) > MAX_FACTORS or first is second is _itself:
            found = func(*args)
            _remember(found, torch.mul, args)
        else:
            found = _Times.apply(*args, made)  # type: ignore[no-untyped-call]
            _remember(found, partial(_times, first, second, len(left)), (*left, *right))
        return found
    return func(*args, **options)


def _remember(found: Tensor, how: Callable[..., Tensor], parts: Sequence[Tensor]) -> None:
    if found.requires_grad:
        setattr(found, _AGAIN, (how, tuple(parts), [one._version for one in (found, *parts)]))


def _itself(one: Tensor) -> Tensor:
    return one


def _times(first: Callable[..., Tensor], second: Callable[..., Tensor], count: int, *parts: Tensor) -> Tensor:
    """The first function of so many parts, times the second of the others."""
    return first(*parts[:count]) * second(*parts[count:])


class _Times(torch.autograd.Function):
    """A product of two factors, element by element, of which it is kept what they are made from."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, made: Sequence[Again]) -> Tensor:
        (ctx.first, left), (ctx.second, right) = made
        ctx.count, ctx.shapes = len(left), (one.shape, other.shape)
        ctx.save_for_backward(*left, *right)
        return one * other

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        parts = ctx.saved_tensors
        by_one = by_other = None
        if ctx.needs_input_grad[0]:
            by_one = (grad * ctx.second(*parts[ctx.count :])).sum_to_size(ctx.shapes[0])
        if ctx.needs_input_grad[1]:
            by_other = (grad * ctx.first(*parts[: ctx.count])).sum_to_size(ctx.shapes[1])
        return by_one, by_other, None
