"""Packed attention by compiled loops equals the float64 computation, whatever the layout of texts and heads."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from burnish.policies.kernels import compiled_attention
from burnish.policies.kernels.attention import PackedAttention, SharedPrefixAttention, eager_attention
from burnish.policies.kernels.compiled_attention import CompiledAttention, fits_loop, plan_tasks
from burnish.policies.kernels.loops import load_loops
from burnish.policies.kernels.spans import GroupSpan

needs_loops = pytest.mark.skipif(load_loops() is None, reason="numba cannot be used here")


def layout(chance: random.Random, prompts: int, longest: int = 90) -> tuple[tuple[GroupSpan, ...], int]:
    """Return spans of random lengths and the number of their tokens."""
    spans, position = [], 0
    for _ in range(prompts):
        start, stop, completions = position, position + chance.randint(1, longest), []
        position = stop
        for _ in range(chance.randint(0, 4)):
            length = chance.randint(1, longest)
            completions.append((position, position + length))
            position += length
        spans.append(GroupSpan(start, stop, tuple(completions)))
    return tuple(spans), position


def run(
    function: type[torch.autograd.Function], inputs: list[Tensor], weights: Tensor, spans: tuple[GroupSpan, ...]
) -> list[Tensor]:
    """Return the output and the gradients for queries [T, H, D], keys [T, K, D] and values [T, K, E]."""
    query, key, value = (tensor.detach().to(weights.dtype).requires_grad_() for tensor in inputs)
    heads = key.shape[1]
    queries = query.transpose(0, 1).view(heads, -1, *query.transpose(0, 1).shape[1:])
    out = function.apply(queries, key.transpose(0, 1), value.transpose(0, 1), spans, 0.3)  # type: ignore[no-untyped-call]
    (out * weights).sum().backward()
    return [out.detach(), *(tensor.grad for tensor in (query, key, value) if tensor.grad is not None)]


@needs_loops
@pytest.mark.parametrize("seed", range(12))
def test_output_and_gradients(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    heads, group, width = chance.randint(1, 4), chance.choice([1, 2, 3, 7]), chance.choice([8, 16, 24, 64, 80])
    spans, length = layout(chance, chance.randint(1, 4))
    chunks = chance.choice([1, 2, 5, 64])  # parts of the work, which may cut the texts of a prompt
    plan = plan_tasks(spans, heads, chunks)
    monkeypatch.setattr(compiled_attention, "plan_tasks", lambda *_: plan)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, heads * group, width), (length, heads, width), (length, heads, width)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    weights = torch.randn(length, heads, group, width, generator=generator)
    expected = run(SharedPrefixAttention, inputs, weights.double(), spans)
    found = run(CompiledAttention, inputs, weights, spans)
    for name, one, other in zip(("output", "query", "key", "value"), found, expected, strict=True):
        assert (one.double() - other).norm() < 3e-6 * other.norm(), name
    again = run(CompiledAttention, inputs, weights, spans)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@needs_loops
def test_values_of_another_width_than_keys_and_an_empty_prompt() -> None:
    spans = (GroupSpan(0, 0, ((0, 20), (20, 31))), GroupSpan(31, 40, ((40, 40), (40, 50))))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in ((50, 4, 16), (50, 2, 16), (50, 2, 40))]
    query, key, value = (tensor.transpose(0, 1).requires_grad_() for tensor in inputs)
    queries = query.view(2, 2, 50, 16)
    out = CompiledAttention.apply(queries, key, value, spans, 0.3)  # type: ignore[no-untyped-call]
    parts = [(slice(0, 20), 0, 20), (slice(20, 31), 20, 31), (slice(31, 50), 31, 50)]
    expected = torch.cat([
        eager_attention(queries[:, :, rows], key[:, start:stop], value[:, start:stop], True, 0.3)[0].movedim(2, 0)
        for rows, start, stop in parts
    ])  # fmt: skip
    assert torch.allclose(out, expected, atol=1e-5)
    weights = torch.randn(out.shape, generator=generator)
    for one, other in zip(
        *(torch.autograd.grad(each, (query, key, value), weights) for each in (out, expected)), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


@needs_loops
def test_not_a_number_stays_one_and_stays_in_its_text() -> None:
    spans = (GroupSpan(0, 4, ((4, 9), (9, 12))),)
    key = torch.randn(1, 12, 16)
    key[0, 6] = float("nan")
    out = PackedAttention(spans).attend(torch.randn(1, 1, 12, 16), key, torch.randn(1, 12, 16), 0.3)
    assert out.isnan().any(-1).flatten().tolist() == [6 <= token < 9 for token in range(12)]


def test_every_text_and_head_is_one_task_and_chunks_cost_about_the_same() -> None:
    spans, length = layout(random.Random(0), 5)
    tasks, bounds, longest, tokens = plan_tasks(spans, 3, 4)
    texts = [(span.start, span.stop, 0) for span in spans]
    texts += [(start, stop, 1) for span in spans for start, stop in span.completions]
    found = [(own, own + length, completes, head) for _, _, own, length, head, completes in tasks.tolist()]
    assert sorted(found) == sorted((*text, head) for text in texts for head in range(3))
    costs = [length * (prompt * completes + length / 2) for _, prompt, _, length, _, completes in tasks.tolist()]
    shares = [sum(costs[start:stop]) for start, stop in itertools.pairwise(bounds)]
    assert bounds[0] == 0 and bounds[-1] == len(tasks) and max(shares) - min(shares) <= 2 * max(costs)
    assert longest == max(row[1] * row[5] + row[3] for row in tasks.tolist()) and tokens == length


def test_what_the_loops_cannot_read_is_left_to_torch() -> None:
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8)
    assert fits_loop(query, key, key) == (load_loops() is not None)
    assert not fits_loop(query.double(), key.double(), key.double())
    assert not fits_loop(query, key.mT.contiguous().mT, key)  # numbers of a head are not adjacent
    assert not fits_loop(query, key[:, :4], key) and not fits_loop(query, key[:1], key)


@needs_loops
def test_spans_beyond_the_tokens_are_refused_before_memory_is_read() -> None:
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8)
    for spans in ((GroupSpan(0, 6, ()),), (GroupSpan(0, 2, ((2, 5), (5, 7))),)):
        with pytest.raises(RuntimeError, match="do not fit a compiled loop"):
            PackedAttention(spans).attend(query, key, key, 0.3)
