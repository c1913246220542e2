"""A saved policy as other programs find it: config and weights agree, and nothing names this machine."""

from __future__ import annotations

import json
import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from burnish.policies.loading import load_model, load_policy
from burnish.recipe.schema import LoRA

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
