"""Compiled norms, gates and rotations have the values and gradients of the modules that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from burnish.policies.kernels import compiled_modules as fast
from burnish.policies.kernels.loops import load_loops
from burnish.policies.kernels.recompute import get_recomputation
from burnish.policies.loading import load_policy
from burnish.types import Completion, Prompt, SamplingParams

pytestmark = pytest.mark.skipif(load_loops() is None, reason="numba is not installed")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the output and the gradients of its sum with fixed weights."""
    leaves = [one.to(dtype).requires_grad_() for one in inputs]
    output = function(*leaves)
    weights = randn(*output.shape, seed=99).to(dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


def plain_norm(states: Tensor, weight: Tensor) -> Tensor:
    return weight * states * (states.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def plain_rotation(cosines: Tensor, sines: Tensor) -> Callable[[Tensor], Tensor]:
    def rotated(heads: Tensor) -> Tensor:
        left, right = heads.chunk(2, -1)
        return heads * cosines[0].unsqueeze(1) + torch.cat((-right, left), -1) * sines[0].unsqueeze(1)

    return rotated


@pytest.mark.parametrize("rows", [1, 64, 131])
def test_values_and_gradients(rows) -> None:
    cosines, sines = randn(1, rows, 10, seed=5), randn(1, rows, 10, seed=6)
    cases = [
        (lambda x, w: fast.rms_norm(x, w, 1e-5), plain_norm, [randn(1, rows, 33, seed=0), randn(33, seed=1)]),
        (fast.gate, lambda g, u: nn.functional.silu(g) * u, [randn(1, rows, 34, seed=2), randn(1, rows, 34, seed=3)]),
        (
            lambda x: fast.rotate(x, cosines, sines), plain_rotation(cosines.double(), sines.double()),
            [randn(rows, 3, 10, seed=4)],
        ),
    ]  # fmt: skip
    for compiled, plain, inputs in cases:
        found = gradients(compiled, inputs, torch.float32)
        for one, expected in zip(found, gradients(plain, inputs, torch.float64), strict=True):
            torch.testing.assert_close(one.double(), expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))


def test_the_weights_gradient_does_not_depend_on_the_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inputs = [randn(1, 200, 16, seed=0), randn(16, seed=1)]
            found.append(gradients(lambda x, w: fast.rms_norm(x, w, 1e-5), inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_consumers_recompute_the_same_bits() -> None:
    states, weight = randn(1, 5, 8, seed=0).requires_grad_(), randn(8, seed=1)
    for result in (fast.rms_norm(states, weight, 1e-5), fast.gate(states, randn(1, 5, 8, seed=2))):
        function, inputs = get_recomputation(result) or pytest.fail("no recomputation")
        assert torch.equal(function(*inputs), result)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_model_has_the_gradients_of_its_own_modules(tiny, kind, monkeypatch) -> None:
    policy = load_policy(tiny(kind))
    calls: list[str] = []
    for name in ("rms_norm", "gate", "rotate"):
        function = getattr(fast, name)
        monkeypatch.setattr(
            fast, name, lambda *args, f=function, n=name, **kwargs: (calls.append(n), f(*args, **kwargs))[1]
        )
    completions = [
        Completion(Prompt("", ""), (5, 6, 7), tuple(range(8, 8 + size)), "", (), "length") for size in (4, 2)
    ]
    found = []
    for loops in (load_loops(), None):
        monkeypatch.setattr(fast, "load_loops", lambda loops=loops: loops)
        logprobs = policy.logprobs(completions, SamplingParams(max_new_tokens=8)).logprobs
        parameters = policy.trainable()
        grads = torch.autograd.grad((logprobs * torch.linspace(-1, 2, 6)).sum(), list(parameters.values()))
        found.append(dict(zip(parameters, grads, strict=True)))
    assert {"rms_norm", "gate", "rotate"} <= set(calls)
    for name, one in found[0].items():
        other = found[1][name]
        assert bool(other.any())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * float(other.abs().max()))
    assert not any("forward" in vars(module) for module in policy.model.modules())


def test_what_a_loop_would_read_beyond_its_memory_is_refused() -> None:
    for call in (
        lambda: fast.rms_norm(torch.ones(1, 2, 8), torch.ones(4), 1e-5),
        lambda: fast.rms_norm(torch.ones(1, 2, 8, dtype=torch.bfloat16), torch.ones(8), 1e-5),
        lambda: fast.gate(torch.ones(1, 2, 8), torch.ones(1, 2, 6)),
        lambda: fast.gate(torch.ones(1, 2, 8), torch.ones(1, 2, 8, dtype=torch.float64)),
        lambda: fast.rotate(torch.ones(3, 2, 8), torch.ones(1, 3, 4), torch.ones(1, 3, 4)),
        lambda: fast.rotate(torch.ones(3, 2, 5), torch.ones(1, 3, 5), torch.ones(1, 3, 5)),
        lambda: fast.rotate(torch.ones(3, 2, 8), torch.ones(1, 2, 8), torch.ones(1, 3, 8)),
    ):
        with pytest.raises(RuntimeError, match="do not fit a compiled loop"):
            call()
