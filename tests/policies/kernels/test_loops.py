"""Compiled loops equal plain formulas in float64, to a few units in the last place of float32."""

from __future__ import annotations

import pytest
import torch

from burnish.policies.kernels import loops

numba_loops = pytest.importorskip("burnish.policies.kernels.numba_loops")
EPS = torch.finfo(torch.float32).eps


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def run_norm(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    output = torch.empty_like(rows)
    numba_loops.rms_norm(len(rows), rows, rows.shape[1], weight, output, 1e-5)
    return output


def run_gate(both: torch.Tensor) -> torch.Tensor:
    output = both.new_empty(len(both), both.shape[1] // 2)
    gate, up = both.chunk(2, 1)
    numba_loops.gate(len(both), gate, gate.stride(0), up, up.stride(0), output, output.shape[1])
    return output


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 8), (63, 577)])
def test_rms_norm(rows, width) -> None:
    states, weight = randn(rows, width, scale=3), randn(width, seed=1)
    wide = states.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(run_norm(states, weight).double(), expected, rtol=6 * EPS, atol=0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_gate(scale) -> None:
    both = randn(5, 34, scale=scale)
    gate, up = both.double().chunk(2, -1)
    # x sigmoid(x): the error of exp(-x) counts in full where it is large.
    torch.testing.assert_close(run_gate(both).double(), gate * gate.sigmoid() * up, rtol=8 * EPS, atol=1e-30)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible(value) -> None:
    """A model whose weights have gone wrong must not sample as if it were well."""
    both = randn(3, 16)
    both[1, 3] = value
    norm = run_norm(both, torch.ones(16))
    assert not norm[1].isfinite().all() and norm[[0, 2]].isfinite().all()
    gated = run_gate(both)
    expected = torch.nn.functional.silu(both[:, :8]) * both[:, 8:]
    assert torch.equal(gated.isfinite(), expected.isfinite())


def test_rotate_works_in_place_on_the_first_heads() -> None:
    states, cosines, sines = randn(4, 5, 6), randn(1, 4, 6, seed=1), randn(1, 4, 6, seed=2)
    before = states.clone()
    numba_loops.rotate(4, 3, 6, states, states.stride(0), states, states.stride(0), cosines, sines, False)
    turned = torch.cat((-before[..., 3:], before[..., :3]), -1)
    expected = before * cosines[0].unsqueeze(1) + turned * sines[0].unsqueeze(1)
    torch.testing.assert_close(states[:, :3], expected[:, :3], rtol=0, atol=4 * EPS * float(expected.abs().max()))
    assert torch.equal(states[:, 3:], before[:, 3:])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        states, both = randn(7, 33), randn(7, 66)
        expected = run_norm(states, torch.ones(33)), run_gate(both)
        torch.set_num_threads(threads)
        assert torch.equal(run_norm(states, torch.ones(33)), expected[0])
        assert torch.equal(run_gate(both), expected[1])
    finally:
        torch.set_num_threads(before)


def test_other_types_and_gradients_use_torch() -> None:
    with torch.no_grad():
        assert loops.compiled_loops(torch.ones(2)) is numba_loops
        assert loops.compiled_loops(torch.ones(2), torch.ones(2, dtype=torch.float64)) is None
        assert loops.compiled_loops(torch.ones(2, dtype=torch.bfloat16)) is None
        assert loops.compiled_loops(torch.ones(2, device="meta")) is None
    assert loops.compiled_loops(torch.ones(2)) is None


@pytest.mark.parametrize("longest", [1, 9])
def test_attention_of_a_decoding_step(longest, monkeypatch) -> None:
    """Rows of unequal lengths, in any order of their groups, as with torch's operations; the cache is filled alike."""
    from burnish.generation import kv_cache

    heads, group, width, lengths = 2, 3, 8, [longest - 1, 0, longest // 2, longest - 1, 0]
    outputs, caches = [], []
    for use_loops in (True, False):
        monkeypatch.setattr(kv_cache, "compiled_loops", loops.compiled_loops if use_loops else lambda *_: None)
        projected = randn(5, heads * (group + 2), width, seed=3)
        query = projected[:, : heads * group].transpose(0, 1).view(heads, group, 5, width)
        key, value = (
            projected[:, first : first + heads].transpose(0, 1) for first in (heads * group, heads * (group + 1))
        )
        cached = kv_cache._LayerCache(key, value, 3, 5, 4, 10)
        for number, tensor in enumerate((*cached.prompts, *cached.answers)):
            tensor.copy_(randn(*tensor.shape, seed=number))
        plan = kv_cache._DecodePlan([2, 0, 2, 1, 0], lengths, [4, 1, 3], None)
        with torch.no_grad():
            outputs.append(plan.attend(cached, query, key, value, 0.3))
        caches.append(cached)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for left, right in zip(caches[0].answers, caches[1].answers, strict=True):
        assert torch.equal(left, right)


def test_attention_that_does_not_fit_its_cache_is_left_to_torch() -> None:
    from burnish.generation import kv_cache

    key = torch.ones(2, 3, 8)
    cached = kv_cache._LayerCache(key, key, 1, 3, 4, 5)
    plan = kv_cache._DecodePlan([0, 0, 0], [2, 4, 3], [4], None)
    query = torch.ones(2, 2, 3, 8)
    assert plan._fits_loop(cached, query, key, key)
    assert not plan._fits_loop(cached, query[..., :6], key[..., :6], key[..., :6])  # other heads
    assert not plan._fits_loop(cached, query, key, key[..., :6])
    assert not plan._fits_loop(cached, query[:, :, :2], key[:, :2], key[:, :2])  # fewer rows than the plan has
    assert not plan._fits_loop(cached, query.mT, key, key)
    full = kv_cache._DecodePlan([0, 0, 0], [2, 5, 3], [4], None)  # a row whose next token has no room
    assert not full._fits_loop(cached, query, key, key)
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        full.attend(cached, query, key, key, 1.0)
