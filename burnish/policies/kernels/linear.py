"""Linear layers computed by the faster CPU library.

torch multiplies float32 matrices with MKL, which reaches about 85% of the speed of oneDNN on AMD processors, and less
for wide outputs such as logits. The choice depends on the processor's vendor only and never on a measurement, so one
machine always computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from burnish.algorithms.table_gradients import embedding
from burnish.policies.kernels.forward_cache import Lookup
from burnish.policies.kernels.recompute import apply_elementwise, get_recomputation, identity

MIN_ROWS = 64
"""With fewer rows, reordering the weight for each product costs more than oneDNN gains."""


@cache
def onednn_is_faster() -> bool:
    """Return whether oneDNN is faster than MKL on this processor and available in this build of torch."""
    if not has_onednn_linear():
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("AuthenticAMD" in line for line in file if line.startswith("vendor_id"))
    except OSError:
        return False


@cache
def has_onednn_linear(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether torch's oneDNN operators compute linear layers of this dtype on this processor."""
    weight = torch.ones(2, 2, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        product = torch.ops.mkldnn._linear_pointwise(weight, packed, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):  # an operator of another build, or none
        return False
    return bool((product == 2).all())


def linear_forward(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``rows`` [S, in] times the transpose of ``weight`` [out, in], plus the bias [out]; without gradient."""
    if _use_onednn(rows, weight):
        output: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return output
    return torch.nn.functional.linear(rows, weight, bias)


def _use_onednn(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.dtype == weight.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.numel() >= MIN_ROWS * rows.shape[-1]
        and onednn_is_faster()
    )


class _Linear(torch.autograd.Function):
    """Differentiable linear layer, y = x W^T + b."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor | None) -> Tensor:
        """Return y [..., out] for rows [..., in]; ``output`` is y, flattened to [T, out], if it is known already."""
        # The inputs of elementwise results are saved anyway, so the rows are recomputed from them and not saved.
        ctx.recompute, parts = get_recomputation(rows) or (identity, (rows,))
        ctx.save_for_backward(weight, *(parts if weight.requires_grad else ()))
        ctx.shape, ctx.with_bias = rows.shape, bias is not None
        output = linear_forward(rows.flatten(0, -2), weight, bias) if output is None else output
        # Not a view, which a layer may not change in place outside of this function.
        shaped: Tensor = torch.ops.aten._unsafe_view(output, (*rows.shape[:-1], weight.shape[0]))
        return shaped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, *parts = ctx.saved_tensors
        flat = grad.flatten(0, -2).contiguous()
        rows_grad = linear_forward(flat, weight.t()).view(ctx.shape) if ctx.needs_input_grad[0] else None
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = linear_forward(flat.t(), ctx.recompute(*parts).flatten(0, -2).t())
        bias_grad = flat.sum(0) if ctx.with_bias and ctx.needs_input_grad[2] else None
        return rows_grad, weight_grad, bias_grad, None


class _LinearMode(TorchFunctionMode):
    def __init__(self, lookup: Lookup | None) -> None:
        super().__init__()
        self.lookup = lookup

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.nn.functional.linear and not options:
            rows, weight, bias = args if len(args) == 3 else (*args, None)
            with torch.no_grad():
                output = None if self.lookup is None or rows.dim() < 2 else self.lookup(weight, rows.flatten(0, -2))
            if output is not None or _use_onednn(rows, weight) or get_recomputation(rows) is not None:
                return _Linear.apply(rows, weight, bias, output)  # type: ignore[no-untyped-call]
        if func is torch.nn.functional.embedding:
            return embedding(*args, **options)
        return apply_elementwise(func, args, options)


@contextmanager
def fast_linear(lookup: Lookup | None = None) -> Iterator[None]:
    """Run ``torch.nn.functional.linear`` by the faster library within this context; models are not changed.

    Outputs that ``lookup`` returns (``forward_cache``) are not computed again.
    """
    with nullcontext() if lookup is None and not onednn_is_faster() else _LinearMode(lookup):
        yield
