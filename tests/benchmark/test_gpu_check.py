"""The checks for a GPU, run on the CPU with two model types, and their table where a check raises."""

from __future__ import annotations

import json
import time

import pytest
import torch

from bench import gpu_speed
from bench.gpu_cases import surprise
from bench.gpu_check import Board, machine, run, table
from burnish.benchmark.model_check import Measured
from burnish.policies.kernels.attention import _attend, eager_attention, eager_attention_backward


@pytest.mark.slow
def test_two_types_on_the_cpu():
    written: list[int] = []
    board = Board(time.monotonic() + 600, written=lambda rows: written.append(len(rows)))
    run("cpu", ["llama", "mistral"], board, small=True)
    wrong = [row for row in board.rows if row["result"] != "ok" and row["check"] != "a run learns"]
    assert wrong == []
    # 9 checks for each of 2 types and 2 dtypes; the build and FlexAttention; of the first type 5 more in float32, and 3
    # more in bfloat16.
    assert len(board.rows) == 9 * 2 * 2 + 2 + 5 + 3
    assert written == list(range(1, len(board.rows) + 1))
    json.dumps(board.rows)
    assert table(machine("cpu"), board.rows, 1.0).count("\n| ") == len(board.rows) + 1


@pytest.mark.slow
def test_the_speed_of_a_small_shape_on_the_cpu(monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny = {**gpu_speed.SHAPES["SmolLM2-135M's shape"], **small, "num_key_value_heads": 2, "vocab_size": 512}
    monkeypatch.setattr(gpu_speed, "SHAPES", {"tiny": tiny})
    found = gpu_speed.check_speed("tiny", "float32", "cpu", gpu_speed.Load(2, 4, 8), steps=3)
    assert found.passed and found.measured > 0
    assert "(engine)" in found.note and " of the bfloat16 arithmetic" in found.note


def test_a_check_that_raises_is_a_row_and_one_that_is_late_is_skipped():
    board = Board(time.monotonic() + 60)

    def broken() -> Measured:
        raise ValueError("it is | broken")

    board.check("one", "llama", "float32", broken)
    board.check("two", "llama", "float32", lambda: Measured(2.0, False, "1"))
    board.deadline = 0.0
    board.check("three", "llama", "float32", lambda: Measured(0.0, True))
    assert [row["result"] for row in board.rows] == ["ERROR", "FAILED", "skipped"]
    rows = table(machine("cpu"), board.rows, 1.0).splitlines()[-3:]
    assert "| ValueError: it is / broken |" in rows[0]
    assert "| FAILED | 2 | 1 |" in rows[1]


def test_surprise_by_hand():
    # (10 - 20)^2 / 20 + (30 - 20)^2 / 20 = 10, one degree of freedom; the rare third token is left out.
    assert surprise([20, 20, 1], {0: 10, 1: 30, 2: 0}) == pytest.approx((10 - 1) / 2**0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_by_hand_is_the_kernels(dtype):
    generator = torch.Generator().manual_seed(0)
    query, grad = (torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    key, value = (torch.randn(2, 7, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    wide = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    out, normaliser = eager_attention(*wide, True, 0.3)
    expected = torch.autograd.grad(out, wide, grad.double())
    found = eager_attention(query, key, value, True, 0.3)
    assert found[1].dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for one in (found, _attend(query, key, value, True, 0.3)):
        torch.testing.assert_close(one[0].double(), out, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(one[1].double(), normaliser, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    grads = eager_attention_backward(grad, query, key, value, *found, True, 0.3)
    for one, other in zip(grads, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=2 * tolerance)
