"""FlexAttention over packed texts. It has no gradient on a CPU but for its unfused form, behind a check of the device."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention import flex_attention

from burnish.policies.kernels import flex_packing
from burnish.policies.kernels.attention import SharedPrefixAttention
from burnish.policies.kernels.flex_packing import block_mask, fits_flex, flex_error, flex_packed
from burnish.policies.kernels.spans import GroupSpan

HEADS, GROUP, WIDTH = 2, 3, 16


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:The .grad attribute"),
]


@pytest.fixture(autouse=True)
def unfused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    block_mask.cache_clear()
    flex_error.cache_clear()


def random_spans(seed: int) -> tuple[tuple[GroupSpan, ...], int]:
    chance, at, spans = random.Random(seed), 0, []
    for _ in range(chance.randint(1, 5)):
        start, stop, texts = at, at + chance.randint(1, 40), []
        at = stop
        for _ in range(chance.randint(0, 5)):
            texts.append((at, at + chance.choice([1, 2, 7, 7, 30])))
            at = texts[-1][1]
        spans.append(GroupSpan(start, stop, tuple(texts)))
    return tuple(spans), at


@pytest.mark.parametrize("seed", range(12))
def test_output_and_gradient_are_those_of_the_attention_of_each_text(seed):
    spans, length = random_spans(seed)
    torch.manual_seed(seed)
    shapes = ((HEADS, GROUP, length, WIDTH), (HEADS, length, WIDTH), (HEADS, length, WIDTH))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weights = torch.randn(length, HEADS, GROUP, WIDTH, dtype=torch.float64)
    found = flex_packed(*inputs, spans, 0.3)
    expected = SharedPrefixAttention.apply(*inputs, spans, 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad((one * weights).sum(), inputs) for one in (found, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


def test_one_mask_serves_all_layers_of_a_microbatch():
    spans, length = random_spans(3)
    assert block_mask(spans, length, torch.device("cpu")) is block_mask(tuple(spans), length, torch.device("cpu"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_keep_their_own_attention(device):
    tensor = torch.empty(2, 3, 8, 64, device=device)
    assert not fits_flex(tensor, tensor[:, 0])


def test_the_trial_finds_a_kernel_that_works_and_one_that_does_not(monkeypatch):
    device = torch.device("cpu")
    assert flex_error(device) is None
    flex_error.cache_clear()
    monkeypatch.setattr(flex_packing, "text_numbers", lambda spans, length: ([0] * length, [0] * length))
    block_mask.cache_clear()
    assert "it is off by" in flex_error(device)
    flex_error.cache_clear()
    monkeypatch.setattr(flex_packing, "_kernel", lambda device: 1 / 0)
    assert flex_error(device) == "ZeroDivisionError: division by zero"
