"""A saved policy as other programs find it: config and weights agree, and nothing names this machine."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from burnish.errors import BurnishError
from burnish.policies.loading import load_model, load_policy
from burnish.policies.pretrained import stored_dtype
from burnish.recipe.schema import LoRA, Recipe
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Run

IDS = torch.tensor([[5, 17, 33, 8, 99]])


def test_a_head_of_its_own_is_saved_as_untied(tiny, tmp_path):
    folder = shutil.copytree(tiny("qwen2"), tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = -weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    load_policy(folder).save(tmp_path)
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    expected = load_model(folder).model(IDS).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected)


def test_a_tied_head_stays_tied(tiny, tmp_path):
    load_policy(tiny("qwen2")).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_saved_folder_is_portable(tiny, tmp_path):
    load_policy(tiny("llama")).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 1
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "safetensors would be 0600"


def test_an_adapter_finds_its_base_by_catalogue_name(tiny, tmp_path, monkeypatch):
    from burnish.policies import pretrained

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    policy = load_policy(tiny("llama"), lora=LoRA(rank=2))
    policy.model.peft_config["default"].base_model_name_or_path = "smollm2-135m"
    policy.save(adapter)
    monkeypatch.setattr(
        pretrained, "resolve_model", lambda name, offline: {"smollm2-135m": tiny("llama")}[name]
    )  # stands in for the catalogue
    assert torch.equal(load_model(adapter).model(IDS).logits, load_model(tiny("llama")).model(IDS).logits)
    assert not list(adapter.glob("README.md"))


@pytest.fixture
def half(tiny, tmp_path):
    """A base whose files are bfloat16."""
    AutoModelForCausalLM.from_pretrained(tiny("qwen2"), dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    for path in tiny("qwen2").glob("tokenizer*"):
        shutil.copy(path, tmp_path / "half")
    return tmp_path / "half"


@pytest.mark.parametrize(
    ("chosen", "stored", "rounded"), [(None, "BF16", True), ("float32", "F32", False), ("float16", "F16", True)]
)
def test_the_saved_type_is_the_bases_own_or_the_chosen_one(half, tmp_path, chosen, stored, rounded):
    policy = load_policy(half, save_dtype=chosen)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(1e-3)
    saved = tmp_path / "saved"
    saved.mkdir()
    policy.save(saved)
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {stored}
    assert "lm_head.weight" not in names, "tied weights stay one tensor"
    dtype = policy.save_dtype
    assert json.loads((saved / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert policy.saves_rounded == rounded
    reopened = load_model(saved).model.state_dict()
    for name, tensor in policy.model.state_dict().items():
        assert tensor.dtype == torch.float32, "the trained weights are not converted"
        assert torch.equal(reopened[name], tensor.to(dtype).float())


def test_a_weight_that_does_not_fit_is_an_error_and_not_infinity(tiny, tmp_path):
    policy = load_policy(tiny("llama"), save_dtype="float16")
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(1e6)
    with pytest.raises(BurnishError, match=r"'model\.norm\.weight' does not fit into torch\.float16"):
        policy.save(tmp_path)


def test_a_float32_base_and_an_adapter_are_saved_as_they_are_trained(tiny, half, tmp_path):
    assert load_policy(tiny("llama")).save_dtype == torch.float32
    assert not load_policy(tiny("llama")).saves_rounded
    adapter = load_policy(half, lora=LoRA(rank=2))
    adapter.save(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    assert stored_dtype(tmp_path) == torch.bfloat16, "of the adapter's base"


@pytest.mark.slow
def test_a_run_with_rounded_weights_resumes_bit_for_bit(half, tmp_path):
    recipe = Recipe.model_validate({"name": "r", "reward": [{"use": "repetition"}]})
    run = Run.create(recipe, tmp_path / "run")

    def learner(policy):
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-3)
        return SimpleNamespace(policy=policy, optimizer=optimizer, parts=(), step=1)

    trained, resumed = learner(load_policy(half)), learner(load_policy(half))
    trained.policy.model(IDS).logits.logsumexp(-1).sum().backward()
    trained.optimizer.step()
    Checkpointer(run, trained, keep=1).save()
    Checkpointer(run, resumed, keep=1).restore(run.checkpoints()[0])
    for name, parameter in trained.policy.trainable().items():
        assert torch.equal(resumed.policy.trainable()[name], parameter)
        assert not torch.equal(parameter, parameter.bfloat16().float())
    run.close()
