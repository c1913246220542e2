"""Linear layers computed by the faster CPU library, with weights that are reordered once for several products.

oneDNN multiplies by weights in an order of its own. Reordering takes up to a fifth of a product's time, so while the
weights stay the same (``using_packed``) each is reordered once. ``products`` chooses the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from burnish.algorithms.table_gradients import adds_to_grad, embedding, ensure_grad
from burnish.policies.kernels.forward_cache import Lookup, weight_elements
from burnish.policies.kernels.products import library, may_use_onednn, onednn_linear, reorder
from burnish.policies.kernels.recompute import apply_elementwise, get_recomputation, identity

MIN_ROWS = 64
"""With fewer rows, reordering the weight for each product costs more than oneDNN gains."""


class PackedWeights:
    """Weights that oneDNN has reordered, each at its first use, up to ``max_bytes`` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.room = max_bytes
        self._packed: dict[tuple[int, bool, int, int], tuple[Tensor, Tensor, Any]] = {}
        """(weight, transposed, first row, rows) -> the weight, which keeps its id unique, some elements, and the result."""

    def get(self, weight: Tensor, rows: slice | None = None, *, transposed: bool = False) -> Any:
        """Return some or all rows of a weight [out, in], transposed or not: reordered where possible, else as a view."""
        part = weight if rows is None else weight[rows]
        view = part.t() if transposed else part
        # A tensor that a layer has computed may be freed, and another take its place.
        if not isinstance(weight, torch.nn.Parameter):
            return view
        key = id(weight), transposed, 0 if rows is None else rows.start, len(part)
        now = weight_elements([part])
        if key in self._packed and torch.equal(self._packed[key][1], now):
            return self._packed[key][2]
        if key not in self._packed:
            if part.nbytes > self.room:
                return view
            self.room -= part.nbytes
        self._packed[key] = weight, now, reorder(view)
        return self._packed[key][2]


_PACKED: ContextVar[PackedWeights | None] = ContextVar("packed", default=None)


@contextmanager
def using_packed(packed: PackedWeights | None) -> Iterator[None]:
    """Reorder weights once for all products within this context, those of the backward pass included."""
    token = _PACKED.set(packed)
    try:
        yield
    finally:
        _PACKED.reset(token)


def current_packed() -> PackedWeights | None:
    """Return the reordered weights in use; a forward pass keeps them for its backward pass."""
    return _PACKED.get()


def multiply(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, packed: PackedWeights | None = None,
    part: slice | None = None,
) -> Tensor:  # fmt: skip
    """Return ``rows`` [S, in] times the transpose of ``weight`` [out, in], plus the bias [out]; without gradient.

    ``part`` selects rows of the weight; the bias is theirs.
    """
    if _use_onednn("forward", rows, weight):
        return onednn_linear(rows, _view(weight, part, packed, transposed=False), bias)
    return torch.nn.functional.linear(rows, weight if part is None else weight[part], bias)


def inputs_grad(
    grad: Tensor, weight: Tensor, *, packed: PackedWeights | None = None, part: slice | None = None
) -> Tensor:
    """Return ``grad`` [S, out] times ``weight`` [out, in], or times the ``part`` of its rows."""
    if _use_onednn("inputs", grad, weight):
        return onednn_linear(grad, _view(weight, part, packed, transposed=True))
    return torch.mm(grad, weight if part is None else weight[part])


def add_weight_grad(total: Tensor, grad: Tensor, rows: Tensor) -> None:
    """Add the transpose of ``grad`` [S, out] times ``rows`` [S, in] to ``total`` [out, in] in place."""
    if _use_onednn("weight", grad, total):
        total += onednn_linear(grad.t(), rows.t())
    elif total.dtype == grad.dtype:
        total.addmm_(grad.t(), rows)
    else:
        total += torch.mm(grad.t(), rows)


def _view(weight: Tensor, part: slice | None, packed: PackedWeights | None, *, transposed: bool) -> Any:
    if packed is not None:
        return packed.get(weight, part, transposed=transposed)
    view = weight if part is None else weight[part]
    return view.t() if transposed else view


def _use_onednn(direction: str, rows: Tensor, weight: Tensor) -> bool:
    return _is_supported(rows, weight) and library(direction, *weight.shape) == "onednn"


def _is_supported(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.dtype == weight.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.numel() >= MIN_ROWS * rows.shape[-1]
        and may_use_onednn()
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
        ctx.packed = current_packed()
        # Not the saved weight, of which gradient checkpointing makes a copy without the ``grad``.
        ctx.leaf = weight if adds_to_grad(weight) else None
        output = multiply(rows.flatten(0, -2), weight, bias, packed=ctx.packed) if output is None else output
        # Not a view, which a layer may not change in place outside of this function.
        shaped: Tensor = torch.ops.aten._unsafe_view(output, (*rows.shape[:-1], weight.shape[0]))
        return shaped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        weight, *parts = ctx.saved_tensors
        flat = grad.flatten(0, -2).contiguous()
        rows_grad = None
        if ctx.needs_input_grad[0]:
            rows_grad = inputs_grad(flat, weight, packed=ctx.packed).view(ctx.shape)
        weight_grad = None
        if ctx.needs_input_grad[1]:
            total = torch.zeros_like(weight) if ctx.leaf is None else ensure_grad(ctx.leaf)
            add_weight_grad(total, flat, ctx.recompute(*parts).flatten(0, -2))
            weight_grad = total if ctx.leaf is None else None
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
            if output is not None or _is_supported(rows, weight) or get_recomputation(rows) is not None:
                return _Linear.apply(rows, weight, bias, output)  # type: ignore[no-untyped-call]
        if func is torch.nn.functional.embedding:
            return embedding(*args, **options)
        return apply_elementwise(func, args, options)


@contextmanager
def fast_linear(lookup: Lookup | None = None) -> Iterator[None]:
    """Run ``torch.nn.functional.linear`` by the faster library within this context; models are not changed.

    Outputs that ``lookup`` returns (``forward_cache``) are not computed again.
    """
    with nullcontext() if lookup is None and not may_use_onednn() else _LinearMode(lookup):
        yield
