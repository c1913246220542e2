"""Gradients of wide tables, added to the place where they are kept.

A model's embedding and its head are tables of [vocabulary, width]. For each use of one in each microbatch autograd makes a
whole new table, zeroes it and adds it to the last: 113 MB, twice a microbatch, for SmolLM2-135M, and a tenth of its update.
Where the caller will call ``backward`` and read ``grad``, as training does, the few rows can be added to ``grad`` at once.
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
    """What is computed inside adds the gradients of its tables to their ``grad`` when ``backward`` comes to it;
    ``torch.autograd.grad`` would not see those."""
    token = _ADDING.set(True)
    try:
        yield
    finally:
        _ADDING.reset(token)


def adds_to_grad(table: Tensor) -> bool:
    """Whether the gradient of a table goes straight to its ``grad``: asked in the forward pass."""
    return _ADDING.get() and table.is_leaf and table.requires_grad


def ensure_grad(table: Tensor) -> Tensor:
    """The table's ``grad``, of zeros where it has none yet."""
    if table.grad is None:
        table.grad = torch.zeros_like(table)
    return table.grad


class _Rows(torch.autograd.Function):
    """Rows [..., d] of a table [V, d], by their numbers."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(table, ids)
        ctx.padding = padding
        return torch.nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        table, ids = ctx.saved_tensors
        numbers, rows = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:  # whose row is not trained
            real = numbers != ctx.padding
            numbers, rows = numbers[real], rows[real]
        ensure_grad(table).index_add_(0, numbers, rows)
        return None, None, None


def embedding(
    ids: Tensor, table: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:  # fmt: skip
    """As ``torch.nn.functional.embedding``; inside ``adding_to_grad``, and where no option speaks against it, its gradient
    is added to the table's ``grad``."""
    if adds_to_grad(table) and torch.is_grad_enabled() and max_norm is None and not scale_grad_by_freq and not sparse:
        padding = padding_idx if padding_idx is None or padding_idx >= 0 else len(table) + padding_idx
        found: Tensor = _Rows.apply(table, ids, padding)  # type: ignore[no-untyped-call]
        return found
    return torch.nn.functional.embedding(ids, table, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
