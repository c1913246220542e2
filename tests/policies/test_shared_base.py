"""Policies with adapters on one base: they share its weights in memory, and training one leaves the others alone."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from burnish.catalogue.convert import resolve_model
from burnish.policies import loading
from burnish.policies.loading import load_policy
from burnish.recipe.schema import LoRA
from burnish.types import Completion, Prompt, SamplingParams

SMALL = LoRA(rank=2, targets=["q_proj", "down_proj"])
PLAIN = SamplingParams(8)


def texts(policy):
    asked = Prompt("p", "The home team")
    ids = policy.encode(" won the match")
    return [Completion(asked, policy.encode_prompt(asked), ids, "", (0.0,) * len(ids), "length")]


def frozen(policy):
    """Return the storages of the weights that are not trained, by name."""
    return {
        name.replace(".base_layer", ""): parameter.data_ptr()
        for name, parameter in policy.model.named_parameters()
        if not parameter.requires_grad
    }


def train(policy, steps=3):
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (-policy.logprobs(texts(policy), PLAIN).logprobs.sum()).backward()
        optimizer.step()


@pytest.fixture
def loads(monkeypatch):
    """Count how often model files are read."""
    calls = []
    load = loading.load_merged_model
    monkeypatch.setattr(
        loading, "load_merged_model", lambda *args, **options: calls.append(args) or load(*args, **options)
    )
    return calls


def test_two_adapters_share_one_base_and_train_apart(tiny, loads):
    one, other = load_policy(tiny("llama"), lora=SMALL), load_policy(tiny("llama"), lora=LoRA(rank=3), seed=1)
    assert len(loads) == 1
    assert frozen(one) == frozen(other)
    before = other.token_logprobs(texts(other))
    base = one.reference.token_logprobs(texts(one))
    train(one)
    assert float((one.token_logprobs(texts(one)) - base).abs().max()) > 0.01
    assert torch.equal(other.token_logprobs(texts(other)), before)
    assert torch.equal(one.reference.token_logprobs(texts(one)), base)
    assert torch.equal(other.reference.token_logprobs(texts(other)), base)
    assert not any(parameter.requires_grad for parameter in one.frozen_base.model.model.parameters())


def test_a_copied_module_and_another_type_are_not_shared(tiny):
    one = load_policy(tiny("llama"), lora=SMALL)
    copied = load_policy(tiny("llama"), lora=LoRA(rank=2, targets=["q_proj"], modules_to_save=["lm_head"]))
    base = one.reference.token_logprobs(texts(one))
    train(copied)
    assert torch.equal(one.reference.token_logprobs(texts(one)), base)
    wide = load_policy(tiny("llama"), lora=SMALL, dtype="float64")
    assert not set(frozen(one).values()) & set(frozen(wide).values())


def test_a_fully_trained_policy_has_its_own_weights(tiny):
    one, whole = load_policy(tiny("llama"), lora=SMALL), load_policy(tiny("llama"))
    base = one.reference.token_logprobs(texts(one))
    train(whole)
    assert torch.equal(one.reference.token_logprobs(texts(one)), base)


def test_a_base_whose_files_change_is_loaded_again(tiny, loads):
    folder = tiny("llama")
    one = load_policy(folder, lora=SMALL)
    file = folder / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    other = load_policy(folder, lora=SMALL)
    assert len(loads) == 2
    assert not set(frozen(one).values()) & set(frozen(other).values())


def test_the_base_is_freed_with_its_last_adapter(tiny):
    one, other = load_policy(tiny("llama"), lora=SMALL), load_policy(tiny("llama"), lora=SMALL)
    held = one.frozen_base
    del one
    gc.collect()
    assert held in loading._BASES.values() and other.frozen_base is held
    del other, held
    gc.collect()
    assert not loading._BASES


@pytest.mark.model
def test_the_second_adapter_of_the_built_in_model_reads_no_weights(loads):
    source = resolve_model("smollm2-135m", offline=True)
    first, second = (load_policy(source, lora=LoRA(rank=8), seed=seed, offline=True) for seed in range(2))
    assert len(loads) == 1 and frozen(first) == frozen(second)
