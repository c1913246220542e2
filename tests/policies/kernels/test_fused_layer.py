"""Fused decoder layers compute the same as the layers that they replace."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from burnish.generation.repacked_model import RepackedLinear, RepackedModel
from burnish.policies.kernels import fused_layer as fused
from burnish.policies.kernels.attention import PackedAttention, use_attention
from burnish.policies.kernels.fused_layer import FusedDecoderLayer
from burnish.policies.kernels.packing import get_backbone
from burnish.policies.kernels.products import has_onednn_linear
from burnish.policies.kernels.spans import GroupSpan
from burnish.policies.loading import load_policy
from burnish.policies.pretrained import quiet_transformers
from burnish.recipe.schema import LoRA

pytestmark = pytest.mark.skipif(not has_onednn_linear(), reason="torch lacks oneDNN's products here")


def states(model, ids: torch.Tensor) -> torch.Tensor:
    """Return the final hidden states of two prompts that are packed into one row."""
    texts = PackedAttention((GroupSpan(0, 4, ()), GroupSpan(4, 9, ())))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with torch.no_grad(), use_attention(model, texts, nullcontext):
        return get_backbone(model)(input_ids=ids, position_ids=positions, use_cache=False)[0]


def moved(model: nn.Module) -> None:
    """Move all weights, norms and biases away from 0 and 1."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)


def built(kind: str, **options):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = AutoConfig.for_model(kind, **(sizes | heads | options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    moved(model)
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "hidden_act": "gelu"}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
        ("qwen2", {}),
    ],
)
def test_equals_the_original_layers(kind, options) -> None:
    model = built(kind, **options)
    fast = RepackedModel(model)
    assert sum(isinstance(module, FusedDecoderLayer) for module in fast.model.modules()) == 2
    ids = torch.tensor([[1, 2, 3, 4, 40, 41, 5, 6, 49]])
    for _ in range(2):  # ``repacked`` must read the current weights each time
        expected = states(model, ids)
        with fast.repacked() as copy:
            found = states(copy, ids)
        assert float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())
        moved(model)


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "neox", "qwen3_moe"])
def test_other_layers_are_not_fused(tiny, kind) -> None:
    fast = RepackedModel(load_policy(tiny(kind)).model)
    assert not any(isinstance(module, FusedDecoderLayer) for module in fast.model.modules())
    assert any(isinstance(module, RepackedLinear) for module in fast.model.modules())


def test_subclassed_layers_are_not_fused() -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    class Mine(LlamaDecoderLayer):
        pass

    model = built("llama")
    model.model.layers[1].__class__ = Mine
    fused = [isinstance(layer, FusedDecoderLayer) for layer in RepackedModel(model).model.model.layers]
    assert fused == [True, False]


def test_adapters_are_merged(tiny) -> None:
    policy = load_policy(tiny("llama"), lora=LoRA(rank=2, targets=["q_proj", "v_proj", "up_proj"]))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) / 5)
    fast = RepackedModel(policy.model)
    assert sum(isinstance(module, FusedDecoderLayer) for module in fast.model.modules()) == 2
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13]])
    expected = states(policy.model.get_base_model(), ids)
    with fast.repacked() as copy:
        found = states(copy, ids)
    assert float((found - expected).abs().max()) <= 5e-6 * float(expected.abs().max())


def test_a_layer_with_dora_is_not_fused(tiny) -> None:
    # DoRA scales the weight by norms that change with the adapter, so the adapter cannot be merged by addition.
    from peft import LoraConfig, get_peft_model

    base = load_policy(tiny("llama")).model
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0], use_dora=True)
    with quiet_transformers():
        model = get_peft_model(base, config).eval()
    moved(model)
    fused = [isinstance(layer, FusedDecoderLayer) for layer in RepackedModel(model).model.model.layers]
    assert fused == [False, True]
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13]])
    expected = states(model.get_base_model(), ids)
    with RepackedModel(model).repacked() as copy:
        assert float((states(copy, ids) - expected).abs().max()) <= 5e-6 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_rounds_like_the_original(dtype, monkeypatch) -> None:
    norm = built("llama").model.layers[0].input_layernorm.to(dtype)
    rows = torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        if dtype == torch.float32:  # the compiled loop sums in another order
            torch.testing.assert_close(fused._norm(norm, rows), norm(rows), rtol=3e-7, atol=0)
            monkeypatch.setattr(fused, "compiled_loops", lambda *_: None)
        assert torch.equal(fused._norm(norm, rows), norm(rows))
