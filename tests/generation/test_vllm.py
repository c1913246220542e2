"""What vLLM's sampler does without vLLM: weights by the names of a checkpoint, adapters merged."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from burnish.errors import InputError
from burnish.generation import vllm
from burnish.generation.vllm import VLLMSampler, checkpoint_weights
from burnish.policies.loading import load_model


def adapted(folder, **options):
    """Return a model with an adapter that changes it."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for an old name of transformers
        return get_peft_model(base, config).eval()


@pytest.mark.parametrize(
    "kind, targets", [("llama", ["q_proj", "down_proj"]), ("qwen2", ["v_proj"]), ("gpt2", ["c_attn"])]
)
def test_weights_have_the_names_of_a_checkpoint(tiny, kind, targets):
    plain = AutoModelForCausalLM.from_pretrained(tiny(kind))
    expected = plain.state_dict()
    assert [name for name, _ in checkpoint_weights(plain)] == list(expected)
    model = adapted(tiny(kind), target_modules=targets, fan_in_fan_out=kind == "gpt2")
    sent = dict(checkpoint_weights(model))
    assert list(sent) == list(expected)
    merged = model.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)
        changed += not torch.equal(tensor, expected[name])
    assert changed == 2 * len(targets)  # of two layers


def test_an_adapter_of_an_embedding_is_refused(tiny):
    model = adapted(tiny("llama"), target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(InputError, match=r"policy\.lora: vLLM cannot get the adapter of '.*embed_tokens'"):
        list(checkpoint_weights(model))


def test_without_the_package_one_line_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in vllm.ENVIRONMENT:
        monkeypatch.setenv(name, "")
    with pytest.raises(InputError, match=r"pip install 'burnish\[vllm\]'"):
        VLLMSampler(load_model(tiny("llama")))


def test_a_table_of_functions_is_hidden_while_vllm_starts(monkeypatch):
    module = ModuleType("llvmlite.binding.ffi")
    monkeypatch.setitem(sys.modules, "llvmlite.binding.ffi", module)
    with pytest.raises(KeyError), vllm._without_llvmlite():
        assert "llvmlite.binding.ffi" not in sys.modules
        raise KeyError
    assert sys.modules["llvmlite.binding.ffi"] is module
    monkeypatch.delitem(sys.modules, "llvmlite.binding.ffi")
    with vllm._without_llvmlite():
        pass
    assert "llvmlite.binding.ffi" not in sys.modules
