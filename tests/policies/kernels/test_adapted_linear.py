"""A linear layer with its adapter as one operation, against peft's own layer."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from burnish.policies.kernels.adapted_linear import adapted_forward

EPS = torch.finfo(torch.float32).eps


def layer(*, bias: bool = False, **options) -> nn.Module:
    """Return a LoRA layer of 5 inputs and 7 outputs, scale 3 / 2, both factors random."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=bias))
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"], **options)
    found = inject_adapter_in_model(config, model)[0]
    nn.init.normal_(found.lora_B["default"].weight)
    return found


def results(forward, module: nn.Module, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the output, and the gradients of the rows and of both factors."""
    factors = module.lora_A["default"].weight, module.lora_B["default"].weight
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(factors[0].dtype).requires_grad_()
    output = forward(rows)
    return [output.detach(), *torch.autograd.grad((output * output).sum(), (rows, *factors))]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (1, 70, 5)])
def test_equals_the_layer_of_peft_in_float64(bias, shape) -> None:
    module = layer(bias=bias)
    exact = copy.deepcopy(module).double()
    expected = results(exact, exact, shape)
    for one, right in zip(results(adapted_forward(module, None), module, shape), expected, strict=True):
        torch.testing.assert_close(one.double(), right, rtol=0, atol=64 * EPS * float(right.abs().max()))


def test_a_stored_output_is_not_computed_again() -> None:
    module, asked = layer(bias=True), []
    whole = results(adapted_forward(module, None), module, (4, 5))

    def lookup(weight, rows):
        asked.append((weight is module.base_layer.weight, rows))
        return whole[0].detach().clone()

    found = results(adapted_forward(module, lookup), module, (4, 5))
    assert asked == [(True, None)]
    for one, right in zip(found, whole, strict=True):
        torch.testing.assert_close(one, right, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda: layer(use_dora=True),
        lambda: layer(lora_dropout=0.1),
        lambda: layer(bias=True, lora_bias=True),
        lambda: layer().double(),
        lambda: layer().base_layer,
    ],
)
def test_a_layer_that_does_more_is_left_to_peft(change) -> None:
    assert adapted_forward(change(), None) is None


def test_an_adapter_that_is_off_merged_or_one_of_two_is_left_to_peft() -> None:
    module = layer()
    module.enable_adapters(False)
    assert adapted_forward(module, None) is None
    module.enable_adapters(True)
    assert adapted_forward(module, None) is not None
    module.merge()
    assert adapted_forward(module, None) is None
    two = layer()
    two.update_layer("second", 2, lora_alpha=3, config=LoraConfig())
    two.set_adapter(["default", "second"])
    assert adapted_forward(two, None) is None
    thawed = layer()
    thawed.base_layer.weight.requires_grad_(True)
    assert adapted_forward(thawed, None) is None
