"""Activations of a layer: the formula against what the backward pass of real layers keeps under mixed precision."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.planning.memory import layer_activation_bytes
from burnish.planning.shapes import Shape
from burnish.policies.kernels.mixed_precision import compute_precision, enable_mixed_precision
from burnish.policies.kernels.packing import get_backbone


def kept_bytes(shape: Shape, layers: int, tokens: int) -> int:
    """Return the bytes that the layers store for the backward pass, bfloat16 copies of weights included."""
    config = LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=layers, num_attention_heads=shape.heads, head_dim=shape.head_size,
        num_key_value_heads=shape.key_value_heads, intermediate_size=shape.intermediate, vocab_size=shape.vocabulary,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    enable_mixed_precision(model, torch.bfloat16)
    sizes: dict[int, int] = {}
    held = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)  # so that no storage is given to another tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), compute_precision(model):
        get_backbone(model)(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return sum(sizes.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "heads", "key_value_heads", "head_size", "intermediate"),
    [(256, 8, 2, 32, 1024), (512, 8, 8, 64, 1408), (256, 16, 2, 32, 1024), (384, 6, 2, 64, 1000)],
)
def test_a_layer_keeps_what_the_formula_says(
    hidden: int, heads: int, key_value_heads: int, head_size: int, intermediate: int
) -> None:
    shape = Shape("random", 1, hidden, heads, key_value_heads, head_size, intermediate, 100, tied=False)
    # Two differences: of numbers of tokens, which removes weights, and of layers, which removes the embedding.
    one, three = ((kept_bytes(shape, layers, 96) - kept_bytes(shape, layers, 32)) / 64 for layers in (1, 3))
    assert (three - one) / 2 == pytest.approx(layer_activation_bytes(shape), rel=0.01)
