"""Results recomputed in the backward pass have the same bits as stored ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from burnish.policies.kernels import linear, products
from burnish.policies.kernels.linear import fast_linear
from burnish.policies.kernels.products import has_onednn_linear
from burnish.policies.kernels.recompute import MAX_FACTORS, apply_elementwise, get_recomputation
from burnish.policies.loading import load_policy
from burnish.types import Completion, Prompt, SamplingParams


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def times(one: Tensor, other: Tensor) -> Tensor:
    found: Tensor = apply_elementwise(torch.mul, (one, other), {})
    return found


def activated(one: Tensor, kind: str = "silu", **options: object) -> Tensor:
    found: Tensor = apply_elementwise(getattr(torch.nn.functional, kind), (one,), options)
    return found


class TestElementwise:
    @pytest.mark.parametrize(("kind", "options"), [("silu", {}), ("gelu", {"approximate": "tanh"}), ("relu", {})])
    @pytest.mark.parametrize("gate_first", [True, False])
    def test_a_gate(self, kind, options, gate_first):
        gate, up, slopes = numbers(3, 5), numbers(3, 5, seed=1), numbers(3, 5, seed=2).detach()
        function = getattr(torch.nn.functional, kind)
        expected = torch.autograd.grad((function(gate, **options) * up * slopes).sum(), (gate, up))
        opened = activated(gate, kind, **options)
        found = times(opened, up) if gate_first else times(up, opened)
        assert torch.equal(found, function(gate, **options) * up)
        how, parts = get_recomputation(found)
        assert torch.equal(how(*parts), found)
        for one, other in zip(torch.autograd.grad((found * slopes).sum(), (gate, up)), expected, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
    def test_a_gate_in_blocks(self, needed):
        # Two blocks of 48 rows, and one of 4.
        gate, up, slopes = (numbers(2, 50, 2048, seed=seed).detach() for seed in range(3))
        gate.requires_grad_(needed[0])
        up.requires_grad_(needed[1])
        wanted = [one for one, need in zip((gate, up), needed, strict=True) if need]
        expected = torch.autograd.grad((torch.nn.functional.silu(gate) * up * slopes).sum(), wanted)
        found = times(activated(gate), up)
        how, parts = get_recomputation(found)
        assert torch.equal(how(*parts), found)
        for one, other in zip(torch.autograd.grad((found * slopes).sum(), wanted), expected, strict=True):
            assert torch.equal(one, other)

    def test_a_gate_of_another_shape(self):
        gate, up = numbers(3, 1), numbers(3, 5, seed=1)
        expected = torch.autograd.grad((torch.nn.functional.silu(gate) * up).sum(), (gate, up))
        for one, other in zip(torch.autograd.grad(times(activated(gate), up).sum(), (gate, up)), expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_a_norm_with_factors_of_other_shapes(self):
        states, scale, weight, slopes = numbers(4, 6), numbers(4, 1, seed=1), numbers(6, seed=2), numbers(4, 6, seed=3)
        expected = torch.autograd.grad((weight * (states * scale) * slopes).sum(), (states, scale, weight))
        found = times(weight, times(states, scale))
        for one, other in zip(
            torch.autograd.grad((found * slopes).sum(), (states, scale, weight)), expected, strict=True
        ):
            torch.testing.assert_close(one, other)

    def test_only_the_factors_are_stored(self):
        gate, up = numbers(3, 5), numbers(3, 5, seed=1)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.data_ptr()) or one, lambda one: one):
            times(activated(gate), up)
        assert set(kept) == {gate.data_ptr(), up.data_ptr()}

    def test_the_number_of_factors_is_limited(self):
        found = numbers(2)
        for seed in range(MAX_FACTORS + 3):
            found = times(found, numbers(2, seed=seed))
            assert len(get_recomputation(found)[1]) <= MAX_FACTORS

    def test_a_factor_changed_in_place_raises_in_the_backward_pass(self):
        gate, up = numbers(3), numbers(3, seed=1)
        other = up + 0
        found = times(activated(gate), other)
        with torch.no_grad():
            other.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            found.sum().backward()

    def test_a_result_changed_in_place_is_stored(self):
        weight, rows = numbers(2, 5), times(activated(numbers(3, 5)), numbers(3, 5, seed=1))
        with torch.no_grad():
            rows.add_(1)
        assert get_recomputation(rows) is None
        found = linear._Linear.apply(rows, weight, None, None)
        by_weight = torch.autograd.grad(found.sum(), weight)[0]
        assert torch.equal(by_weight, torch.ones(2, 3) @ rows.detach())

    def test_a_result_is_stored_if_a_factor_was_changed_before_the_next_product(self):
        # autograd does not store this factor and so would not notice: the other factor needs no gradient.
        weight, plain, factor = numbers(2, 5), numbers(3, 5, seed=1).detach(), numbers(3, 5, seed=2)
        rows = times(plain, factor)
        before = rows.detach().clone()
        assert get_recomputation(rows) is not None
        with torch.no_grad():
            factor.add_(1)
        assert get_recomputation(rows) is None
        found = linear._Linear.apply(rows, weight, None, None)
        assert torch.equal(torch.autograd.grad(found.sum(), weight)[0], torch.ones(2, 3) @ before)

    def test_nothing_is_recorded_without_a_gradient(self):
        plain = numbers(3).detach()
        assert get_recomputation(times(activated(plain), plain)) is None
        with torch.no_grad():
            assert get_recomputation(times(numbers(3), numbers(3))) is None
        assert apply_elementwise(torch.mul, (numbers(3), 2.0), {}).shape == (3,)
        silent = numbers(3).detach().clone()
        assert get_recomputation(apply_elementwise(torch.nn.functional.silu, (silent,), {"inplace": True})) is None


@pytest.mark.skipif(not has_onednn_linear(), reason="torch lacks oneDNN's products here")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_model_stores_less_and_its_gradient_has_the_same_bits(tiny, kind, monkeypatch):
    monkeypatch.setattr(products, "usual_library", lambda: "onednn")
    monkeypatch.setattr(linear, "MIN_ROWS", 1)
    policy = load_policy(tiny(kind))
    completions = [
        Completion(Prompt("a", "b"), (3, 4, 5), tuple(range(8, 16 + length)), "", (0.0,) * (8 + length), "length")
        for length in (0, 5)
    ]  # fmt: skip

    def run() -> tuple[list[Tensor], int]:
        kept: dict[int, int] = {}
        alive = []

        def count(one: Tensor) -> Tensor:
            alive.append(one)
            kept[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
            return one

        with torch.autograd.graph.saved_tensors_hooks(count, lambda one: one):
            stats = policy.logprobs(completions, SamplingParams(20))
        (stats.logprobs * torch.linspace(-1, 2, len(stats.logprobs))).sum().backward()
        slopes = [parameter.grad for parameter in policy.trainable().values() if parameter.grad is not None]
        policy.model.zero_grad()
        return slopes, sum(kept.values())

    found, less = run()
    monkeypatch.setattr(linear, "apply_elementwise", lambda func, args, options: func(*args, **options))
    monkeypatch.setattr(linear, "get_recomputation", lambda _: None)
    expected, more = run()
    assert less < more if kind != "gpt2" else less <= more
    assert found and any(one.any() for one in found)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not has_onednn_linear(), reason="torch lacks oneDNN's products here")
def test_products_written_as_operators_or_methods_are_recorded(monkeypatch):
    monkeypatch.setattr(products, "usual_library", lambda: "onednn")
    gate, up = numbers(2, 3), numbers(2, 3, seed=1)
    with fast_linear():
        assert get_recomputation(torch.nn.SiLU()(gate) * up) is not None
        assert get_recomputation(gate * up) is not None
        assert get_recomputation(gate.mul(up)) is not None
