"""Export: a copy, a merged model or a GGUF file, and the card that goes with a run's."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from burnish.backends.export import export_model
from burnish.errors import InputError
from burnish.policies.gguf_file import _pre_tokenizer
from burnish.policies.loading import load_model, load_policy
from burnish.recipe.schema import LoRA, Recipe

IDS = torch.tensor([[5, 17, 33, 8, 99]])
EVALUATION = {
    "reward": {"before": 0.5, "after": 0.75, "difference": 0.25, "interval": [0.1, 0.4], "p_value": 0.001, "n": 40},
    "bleu": {"before": 1.0, "after": None, "difference": None, "interval": None, "p_value": None, "n": 40},
}


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    """An adapter whose weights are not zero."""
    policy = load_policy(tiny("llama"), lora=LoRA(rank=2))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.ones_like(parameter), alpha=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    policy.save(folder)
    return folder


@pytest.fixture
def run(adapter, tmp_path) -> Path:
    """A run folder with an adapter."""
    folder = tmp_path / "run"
    shutil.copytree(adapter, folder / "model")
    recipe = Recipe.model_validate({"name": "mine", "steps": 3, "reward": [{"use": "repetition", "weight": 2.0}]})
    (folder / "recipe.toml").write_text(recipe.toml())
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


@pytest.mark.slow
def test_an_adapter_is_copied_or_merged(run, tmp_path):
    expected = load_model(run / "model").model(IDS).logits
    export_model(str(run), tmp_path / "copy")
    copied, saved = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "copy", run / "model"))
    assert copied.keys() == saved.keys() and all(torch.equal(copied[name], saved[name]) for name in saved)
    export_model(str(run), tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert torch.equal(logits(tmp_path / "merged"), expected)
    assert len({path.stat().st_mode for path in (tmp_path / "merged").iterdir()}) == 1


def test_the_type_is_converted(run, tmp_path):
    export_model(str(run), tmp_path / "half", merge=True, dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "this is an adapter: add --merge"),
        ({"dtype": "int8", "merge": True}, "--dtype int8: must be float32"),
        ({"dtype": "q4_k", "gguf": True}, "--dtype q4_k: burnish writes GGUF files of type f32, f16, bf16, q8_0"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export_model(str(run), tmp_path / "out", **options)
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_is_never_overwritten_and_a_hub_id_is_no_folder(run, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        export_model(str(run), tmp_path)
    with pytest.raises(InputError, match="is not in the hub's cache"):
        export_model("Qwen/Qwen2.5-0.5B", tmp_path / "out", offline=True)


def test_the_card_can_be_read_again_and_holds_what_was_measured(run, tmp_path):
    export_model(str(run), tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft" and card.data.base_model == "smollm2-135m"
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("reward", 0.75)], "finite ones"
    assert "| reward | 0.50 | 0.75 | +0.25 [+0.10, +0.40] | 0.001 | 40 |" in card.text
    assert "`repetition` (weight 2)" in card.text
    assert str(tmp_path) not in card.content


def test_a_card_names_no_path_of_this_machine(run, tmp_path, tiny):
    recipe = tomllib.loads((run / "recipe.toml").read_text()) | {"policy": {"model": str(tiny("llama"))}}
    (run / "recipe.toml").write_text(Recipe.model_validate(recipe).toml())
    export_model(str(run), tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model is None and str(tiny("llama")) not in card.content


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {one.name: one.data for one in GGUFReader(path).tensors}


@pytest.mark.slow
def test_a_gguf_file_has_every_weight_and_the_tokenizer(run, tmp_path):
    path = export_model(str(run), tmp_path / "gguf", gguf=True)
    assert path == tmp_path / "gguf" / "run.gguf"
    reader, merged = GGUFReader(path), load_model(run / "model").model
    read = {name: field.contents() for name, field in reader.fields.items()}
    config = merged.config
    assert read["llama.rope.freq_base"] == config.rope_parameters["rope_theta"]
    assert (read["llama.attention.head_count"], read["llama.attention.head_count_kv"]) == (4, 2)
    assert (read["tokenizer.ggml.pre"], read["tokenizer.ggml.eos_token_id"]) == ("gpt-2", 1)
    assert read["tokenizer.ggml.tokens"][:2] == ["<|begin|>", "<|end|>"]
    assert read["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    weights = merged.state_dict()
    assert len(reader.tensors) == len(weights)
    np.testing.assert_array_equal(tensors(path)["blk.1.ffn_up.weight"], weights["model.layers.1.mlp.up_proj.weight"])
    # Row r of the first half of a head and of its second half become neighbours.
    query = weights["model.layers.0.self_attn.q_proj.weight"].reshape(4, 2, 4, 32)
    stored = tensors(path)["blk.0.attn_q.weight"].reshape(4, 4, 2, 32)
    np.testing.assert_array_equal(stored[:, :, 0], query[:, 0])
    np.testing.assert_array_equal(stored[:, :, 1], query[:, 1])


@pytest.mark.slow
def test_a_tied_head_is_written_once_and_rows_of_other_types_are_not_reordered(tiny, tmp_path):
    path = export_model(str(tiny("qwen2")), tmp_path / "gguf", gguf=True, dtype="q8_0")
    found = {one.name: one.tensor_type.name for one in GGUFReader(path).tensors}
    assert "output.weight" not in found
    kinds = [found[f"blk.0.{name}"] for name in ("attn_q.weight", "attn_q.bias", "ffn_down.weight")]
    assert kinds == ["Q8_0", "F32", "F16"], "rows of 48 weights have no whole number of blocks"
    plain = export_model(str(tiny("qwen2")), tmp_path / "plain", gguf=True, dtype="f32")
    expected = load_file(tiny("qwen2") / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(tensors(plain)["blk.0.attn_q.weight"], expected)


def test_other_architectures_positions_and_tokenizers_are_refused_by_name(tiny, tmp_path):
    with pytest.raises(InputError, match="and this one is 'gpt2': export without --gguf"):
        export_model(str(tiny("gpt2")), tmp_path / "out", gguf=True)
    folder = shutil.copytree(tiny("llama"), tmp_path / "yarn")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="rotary positions of type 'yarn'"):
        export_model(str(folder), tmp_path / "out", gguf=True)
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    described = {"model": {"type": "BPE"}, "pre_tokenizer": level}
    assert _pre_tokenizer(described) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    assert (
        _pre_tokenizer(described | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]}})
        == "smollm"
    )
    for other in (
        {"pre_tokenizer": level | {"add_prefix_space": True}},
        {"model": {"type": "BPE", "byte_fallback": True}},
        {"model": {"type": "Unigram"}},
        {"normalizer": {"type": "Lowercase"}},
    ):
        with pytest.raises(InputError, match="splits text in a way"):
            _pre_tokenizer(described | other)


def test_llama3_positions_are_written_as_factors(tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "llama3")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    factors = tensors(export_model(str(folder), tmp_path / "out", gguf=True))["rope_freqs.weight"]
    # Wavelengths 2 pi 10000^(i/4) = 6.3, 62.8, 628, 6283: the first is under 64/4 and kept, those over 64 are stretched 8
    # times; the second blends 1/8 and 1 with weight (64/62.8 - 1) / 3 = 0.0062.
    blend = (64 / (20 * np.pi) - 1) / 3
    np.testing.assert_allclose(factors, [1, 1 / ((1 - blend) / 8 + blend), 8, 8], rtol=1e-5)
