"""Matrix products by the library that is faster on this processor.

torch multiplies float32 matrices with MKL, which on processors of AMD takes a path that reaches about 85% of what oneDNN
does there, and less where the result is wide, as logits are. The choice hangs on the processor's name alone and never on a
measurement, so that one machine always gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from burnish.algorithms.table_gradients import embedding
from burnish.policies.kernels.forward_cache import Lookup
from burnish.policies.kernels.recompute import apply_elementwise, get_recomputation

MIN_ROWS = 64
"""Below, laying out the weight anew for each product eats the gain."""


@cache
def onednn_is_faster() -> bool:
    """Whether this processor is of the kind that oneDNN multiplies faster on, and torch has oneDNN's product."""
    if not has_onednn_linear():
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("AuthenticAMD" in line for line in file if line.startswith("vendor_id"))
    except OSError:
        return False


@cache
def has_onednn_linear(dtype: torch.dtype = torch.float32) -> bool:
    """Whether torch's oneDNN operators multiply numbers of this type on this processor."""
    weight = torch.ones(2, 2, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        found = torch.ops.mkldnn._linear_pointwise(weight, packed, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):  # an operator of another build, or none
        return False
    return bool((found == 2).all())


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [S, in] times the transpose of weight [out, in], without gradient."""
    if _fits(rows, weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return found
    return torch.nn.functional.linear(rows, weight, bias)


def _fits(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.dtype == weight.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.numel() >= MIN_ROWS * rows.shape[-1]
        and onednn_is_faster()
    )


class _Linear(torch.autograd.Function):
    """x W' + b."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, found: Tensor | None) -> Tensor:
        """``found`` is the product [T, out], where it is known already."""
        # What made the rows is kept for the backward pass anyway: they are made again there and not kept too.
        ctx.again, parts = get_recomputation(rows) or (_itself, (rows,))
        ctx.save_for_backward(weight, *(parts if weight.requires_grad else ()))
        ctx.shape, ctx.with_bias = rows.shape, bias is not None
        found = product(rows.flatten(0, -2), weight, bias) if found is None else found
        return found.view(*rows.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, *parts = ctx.saved_tensors
        flat = grad.flatten(0, -2).contiguous()
        by_rows = product(flat, weight.t()).view(ctx.shape) if ctx.needs_input_grad[0] else None
        by_weight = product(flat.t(), ctx.again(*parts).flatten(0, -2).t()) if ctx.needs_input_grad[1] else None
        by_bias = flat.sum(0) if ctx.with_bias and ctx.needs_input_grad[2] else None
        return by_rows, by_weight, by_bias, None


def _itself(rows: Tensor) -> Tensor:
    return rows


class _Products(TorchFunctionMode):
    def __init__(self, find: Lookup | None) -> None:
        super().__init__()
        self.find = find

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.nn.functional.linear and not options:
            rows, weight, bias = args if len(args) == 3 else (*args, None)
            with torch.no_grad():
                found = None if self.find is None or rows.dim() < 2 else self.find(weight, rows.flatten(0, -2))
            if found is not None or _fits(rows, weight) or get_recomputation(rows) is not None:
                return _Linear.apply(rows, weight, bias, found)  # type: ignore[no-untyped-call]
        if func is torch.nn.functional.embedding:
            return embedding(*args, **options)
        return apply_elementwise(func, args, options)


@contextmanager
def fast_linear(find: Lookup | None = None) -> Iterator[None]:
    """Inside, ``torch.nn.functional.linear`` takes the faster library, forward and backward, and makes no product that is
    found; models are not changed."""
    if find is None and not onednn_is_faster():
        yield
        return
    with _Products(find):
        yield
