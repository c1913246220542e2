"""Gradients of embedding tables, accumulated directly into ``grad``.

The embedding and the head of a model are tables [vocabulary, width]. For each use in each microbatch, autograd
allocates a whole table, zeroes it and adds it to the last: 113 MB twice per microbatch for SmolLM2-135M, a tenth of its
update time. A caller that runs ``backward`` and reads ``grad``, as training does, can add the few rows to ``grad``
directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_ADDING: ContextVar[bool] = ContextVar("adding", default=False)


@contextmanager
def adding_to_grad() -> Iterator[None]:
    """Add gradients of tables directly to ``grad`` in the backward pass; ``torch.autograd.grad`` does not see them."""
    token = _ADDING.set(True)
    try:
        yield
    finally:
        _ADDING.reset(token)


def adds_to_grad(table: Tensor) -> bool:
    """Whether the gradient of a table is added to its ``grad`` directly; to be called in the forward pass."""
    return _ADDING.get() and table.is_leaf and table.requires_grad


def ensure_grad(table: Tensor) -> Tensor:
    """Return the table's ``grad``, created with zeros if it is None."""
    if table.grad is None:
        table.grad = torch.zeros_like(table)
    return table.grad


class _Rows(torch.autograd.Function):
    """Rows [..., d] of a table [V, d] by index."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(table, ids)
        ctx.padding = padding
        return torch.nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        table, ids = ctx.saved_tensors
        indices, rows = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:  # the padding row is not trained
            real = indices != ctx.padding
            indices, rows = indices[real], rows[real]
        ensure_grad(table).index_add_(0, indices, rows)
        return None, None, None


def embedding(
    ids: Tensor, table: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.embedding``, whose gradient is added to ``grad`` directly inside ``adding_to_grad``."""
    if adds_to_grad(table) and torch.is_grad_enabled() and max_norm is None and not scale_grad_by_freq and not sparse:
        padding = padding_idx if padding_idx is None or padding_idx >= 0 else len(table) + padding_idx
        rows: Tensor = _Rows.apply(table, ids, padding)  # type: ignore[no-untyped-call]
        return rows
    return torch.nn.functional.embedding(ids, table, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
