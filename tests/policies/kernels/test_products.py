"""The choice of a library for each product, and weights that are reordered once."""

from __future__ import annotations

import json

import pytest
import torch

from burnish.policies.kernels import products
from burnish.policies.kernels.linear import PackedWeights, add_weight_grad, inputs_grad, multiply
from burnish.policies.kernels.products import LARGE, choices, choose_libraries, has_onednn_linear, library, use_choices

pytestmark = pytest.mark.skipif(not has_onednn_linear(), reason="torch lacks oneDNN's products here")
SIDE = int(LARGE**0.5)


@pytest.fixture(autouse=True)
def _own_choices(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(products, "_chosen", {})
    monkeypatch.setattr(products, "home", lambda: tmp_path)
    monkeypatch.setattr(products, "usual_library", lambda: "onednn")


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, tuple[float, float]]) -> list[str]:
    """Let each product by torch and by oneDNN take these seconds, by direction; return the list of what is measured."""
    measured: list[str] = []

    def pairs(outputs: int, inputs: int):
        measured.append(f"{outputs}x{inputs}")
        return {f"{way} {outputs}x{inputs}": seconds[way] for way in products.DIRECTIONS}

    monkeypatch.setattr(products, "_products", pairs)
    monkeypatch.setattr(products, "_seconds", lambda pair: pair)
    return measured


TIMES = {"forward": (1.04, 1.0), "inputs": (1.0, 1.04), "weight": (1.0, 1.06)}
"""Seconds of torch and of oneDNN."""
EXPECTED = {"forward": "onednn", "inputs": "onednn", "weight": "torch"}
"""Torch replaces the usual oneDNN where it is more than 1.05 times as fast."""


def test_the_faster_library_is_chosen_and_kept_for_the_next_process(monkeypatch, tmp_path) -> None:
    measured = timed(monkeypatch, TIMES)
    choose_libraries([(SIDE, SIDE), (SIDE, SIDE)])
    assert {way: library(way, SIDE, SIDE) for way in EXPECTED} == EXPECTED
    assert measured == [f"{SIDE}x{SIDE}"]
    products._chosen.clear()  # another process
    choose_libraries([(SIDE, SIDE)])
    assert {way: library(way, SIDE, SIDE) for way in EXPECTED} == EXPECTED and len(measured) == 1
    choose_libraries([(SIDE, SIDE), (SIDE, 64)])
    assert measured[1:] == [f"{SIDE}x64"] and len(choices()) == 6
    (path,) = (tmp_path / "products").iterdir()
    assert len(json.loads(path.read_text())) == 6
    path.write_text("damaged")
    products._chosen.clear()
    choose_libraries([(SIDE, SIDE)])
    assert len(measured) == 3 and len(choices()) == 3


def test_another_number_of_threads_is_measured_anew(monkeypatch) -> None:
    measured = timed(monkeypatch, TIMES)
    choose_libraries([(SIDE, SIDE)])
    products._chosen.clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    choose_libraries([(SIDE, SIDE)])
    assert len(measured) == 2


def test_small_models_are_not_measured_and_wide_layers_are_like_narrower_ones(monkeypatch) -> None:
    measured = timed(monkeypatch, TIMES)
    choose_libraries([(SIDE - 1, SIDE), (8, 8)])
    assert not measured and choices() == {}
    choose_libraries([(products.WIDEST * 12, 64)])
    assert measured == [f"{products.WIDEST}x64"]
    assert library("weight", products.WIDEST * 3, 64) == "torch"


def test_recorded_choices_hold_whatever_this_machine_would_choose(monkeypatch) -> None:
    measured = timed(monkeypatch, TIMES)
    use_choices({f"{way} {SIDE}x{SIDE}": "torch" for way in EXPECTED} | {"weight 1x1": "nonsense"})
    choose_libraries([(SIDE, SIDE)])
    assert not measured and {library(way, SIDE, SIDE) for way in EXPECTED} == {"torch"}
    assert library("weight", 1, 1) == "onednn"


def test_a_measurement_names_every_product(monkeypatch) -> None:
    choose_libraries([(SIDE, SIDE)])
    assert set(choices()) == {f"{way} {SIDE}x{SIDE}" for way in EXPECTED}
    assert set(choices().values()) <= set(products.LIBRARIES)


class TestPackedWeights:
    @pytest.mark.parametrize("name", products.LIBRARIES)
    @pytest.mark.parametrize("part", [None, slice(32, 80)])
    def test_products_are_the_plain_ones(self, name, part, monkeypatch) -> None:
        monkeypatch.setattr(products, "usual_library", lambda: name)
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(96, 48, generator=generator))
        chosen = weight.detach() if part is None else weight.detach()[part]
        rows, grad = (torch.randn(70, width, generator=generator) for width in (48, len(chosen)))
        packed = PackedWeights(1 << 20)
        for one in (None, packed, packed):
            torch.testing.assert_close(multiply(rows, weight, packed=one, part=part), rows @ chosen.T)
            torch.testing.assert_close(inputs_grad(grad, weight, packed=one, part=part), grad @ chosen)
        total = torch.ones_like(chosen)
        add_weight_grad(total, grad, rows)
        torch.testing.assert_close(total, 1 + grad.T @ rows)

    def test_a_weight_that_has_changed_is_reordered_again(self) -> None:
        weight, rows = torch.nn.Parameter(torch.ones(96, 48)), torch.ones(70, 48)
        packed = PackedWeights(1 << 20)
        assert (multiply(rows, weight, packed=packed) == 48).all()
        weight.data.mul_(2)  # as a fused optimizer does, which autograd's version counter does not see
        assert (multiply(rows, weight, packed=packed) == 96).all()

    def test_only_parameters_up_to_the_limit_are_reordered(self) -> None:
        weight, rows = torch.nn.Parameter(torch.ones(96, 48)), torch.ones(70, 48)
        packed = PackedWeights(weight.nbytes)
        assert packed.get(weight.detach()).data_ptr() == weight.data_ptr() and packed.room == weight.nbytes
        multiply(rows, weight, packed=packed)
        assert packed.room == 0
        assert packed.get(weight, transposed=True).data_ptr() == weight.data_ptr()
        assert (inputs_grad(torch.ones(70, 96), weight, packed=packed) == 96).all()
