"""Attention of a packed sequence by compiled loops (``loops``), forward and backward.

Problem: torch's kernels want each text by itself, keys with as many heads as the queries, and the parts over prompt and
completion merged afterwards. The copies take as long as the kernels.

Idea: one loop reads queries, keys and values where they are and writes the output where the next layer reads it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from burnish.policies.kernels.loops import check_loop, load_loops
from burnish.policies.kernels.spans import GroupSpan

MOST_CHUNKS = 64


class TaskPlan(NamedTuple):
    """The work of the loops, in chunks of about equal cost.

    Attributes:
        tasks: [n, 6], a text and a head each: start and length of the prompt, start and length of the text, head, and 1
            for a completion. Those with one prompt and head are adjacent.
        bounds: [chunks + 1], indices of tasks.
        longest: tokens of the longest text, with its prompt.
        tokens: length that the packed sequence must have.
    """

    tasks: Tensor
    bounds: Tensor
    longest: int
    tokens: int


@lru_cache(maxsize=64)
def plan_tasks(spans: tuple[GroupSpan, ...], heads: int, chunks: int) -> TaskPlan:
    """Return the plan for some spans and heads of keys."""
    tasks, costs = [], []
    for span in spans:
        prompt = span.stop - span.start
        texts = [(span.start, prompt, 0)] * (prompt > 0)
        texts += [(start, stop - start, 1) for start, stop in span.completions if stop > start]
        for head in range(heads):
            for start, length, completes in texts:
                tasks.append((span.start, prompt, start, length, head, completes))
                costs.append(length * (prompt * completes + (length + 1) / 2))
    ends = torch.tensor(costs, dtype=torch.float64).cumsum(0)
    shares = torch.arange(1, chunks, dtype=torch.float64) / chunks * (ends[-1] if len(ends) else 0)
    bounds = torch.searchsorted(ends - torch.tensor(costs, dtype=torch.float64) / 2, shares)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), bounds, torch.tensor([len(tasks)])])
    longest = max((task[1] * task[5] + task[3] for task in tasks), default=0)
    stops = [stop for span in spans for stop in (span.stop, *(stop for _, stop in span.completions))]
    return TaskPlan(torch.tensor(tasks, dtype=torch.int64), bounds, longest, max(stops, default=0))


def fits_loop(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether the loops can compute the attention of these tensors of ``PackedAttention.attend``."""
    tensors = (query, key, value)
    return (
        all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and all(tensor.stride(-1) == 1 for tensor in tensors)
        and query.shape[2] == key.shape[1] == value.shape[1]
        and len(query) == len(key) == len(value)
        and query.shape[-1] == key.shape[-1]
        and load_loops() is not None
    )


class CompiledAttention(torch.autograd.Function):
    """``SharedPrefixAttention`` by compiled loops."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float
    ) -> Tensor:
        """Return [T, K, g, E] for query [K, g, T, D], key [K, T, D] and value [K, T, E]."""
        heads, group, length, _ = query.shape
        out = query.new_empty(length, heads, group, value.shape[-1])
        normaliser = query.new_empty(length, heads, group)
        plan = plan_tasks(spans, heads, min(MOST_CHUNKS, torch.get_num_threads()))
        check_loop(plan.tokens <= length, query, key, value)
        _loops().attend_packed(len(plan.bounds) - 1, *_arguments(query, key, value, out, normaliser, plan, scale))
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, normaliser = ctx.saved_tensors
        tasks, bounds, longest, _ = ctx.plan
        heads, group, length, width = query.shape
        value_width, chunks = value.shape[-1], len(bounds) - 1
        query_grad = query.new_empty(length, heads, group, width)
        key_grad, value_grad = query.new_empty(length, heads, width), query.new_empty(length, heads, value_width)
        apart = query.new_empty(chunks, longest, width), query.new_empty(chunks, longest, value_width)
        _loops().attend_packed_grads(
            chunks, *_arguments(query, key, value, out, normaliser, ctx.plan, ctx.scale), grad.contiguous(),
            query_grad, key_grad, value_grad, *apart,
        )  # fmt: skip
        for chunk, task in enumerate(bounds[:-1].tolist()):
            if 0 < task < min(len(tasks), int(bounds[chunk + 1])):
                start, prompt, _, _, head, _ = tasks[task].tolist()
                if tasks[task - 1, [0, 4]].tolist() == [start, head]:
                    key_grad[start : start + prompt, head] += apart[0][chunk, :prompt]
                    value_grad[start : start + prompt, head] += apart[1][chunk, :prompt]
        return query_grad.movedim(0, 2), key_grad.movedim(0, 1), value_grad.movedim(0, 1), None, None


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, normaliser: Tensor, plan: TaskPlan, scale: float
) -> list[int | float | Tensor]:  # fmt: skip
    heads, group, _, width = query.shape
    return [
        heads, group, width, value.shape[-1], plan.longest, query, query.stride(2), query.stride(0), query.stride(1),
        key, key.stride(1), key.stride(0), value, value.stride(1), value.stride(0), out, normaliser, plan.tasks,
        plan.bounds, len(plan.tasks), scale,
    ]  # fmt: skip


def _loops() -> Any:
    from burnish.policies.kernels import numba_attention

    return numba_attention
