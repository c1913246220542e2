"""Saved folders as other programs read them: both spellings of a key, nothing that is true on one machine only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from burnish.catalogue import store
from burnish.catalogue.portable import make_portable, public_name


def rewritten(folder: Path, name: str, content: dict[str, Any], **options: Any) -> dict[str, Any]:
    (folder / name).write_text(json.dumps(content))
    make_portable(folder, **options)
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
            {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_rotary_positions_have_both_spellings(tmp_path, rope, older):
    config = rewritten(tmp_path, "config.json", {"model_type": "llama", "hidden_size": 32, "rope_parameters": rope})
    assert {key: config[key] for key in older} == older
    assert config["rope_parameters"] == rope
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope, "version 5 reads what it wrote"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gemma3_text", ("rope_theta", "rope_local_base_freq")),
        ("modernbert-decoder", ("global_rope_theta", "local_rope_theta")),
    ],
)
def test_frequencies_per_type_of_layer(tmp_path, kind, names):
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 7e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
    }
    config = rewritten(tmp_path, "config.json", {"model_type": kind, "rope_parameters": rope})
    assert [config[name] for name in names] == [7e6, 3e4]
    read = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert [read[layers]["rope_theta"] for layers in rope] == [7e6, 3e4]


@pytest.mark.parametrize("kind", ["gemma4_text", "cohere_compass_text", "beam", "laguna", "modernbert", "llama"])
def test_older_names_change_nothing_that_version_5_reads(tmp_path, kind):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    make_portable(tmp_path)
    after = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key: after.get(key) for key in before} == before


def test_gpt_neox_has_names_of_its_own_and_nested_configs_are_rewritten(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}
    config = rewritten(tmp_path, "config.json", {"model_type": "gpt_neox", "rope_parameters": rope})
    assert (config["rotary_emb_base"], config["rotary_pct"]) == (2e4, 0.25)
    inner = {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}, "dtype": "float32"}
    config = rewritten(tmp_path, "config.json", {"model_type": "got_ocr2", "text_config": inner}, dtype="bfloat16")
    assert config["text_config"]["rope_theta"] == 2e4 and config["text_config"]["dtype"] == "bfloat16"


def test_infinity_is_a_number_and_code_that_is_not_there_is_not_named(tmp_path):
    limits = [0.0, {"__float__": "Infinity"}]
    written = {"model_type": "mamba2", "time_step_limit": limits, "auto_map": {"AutoConfig": "code.Config"}}
    config = rewritten(tmp_path, "config.json", written)
    assert config["time_step_limit"] == [0.0, float("inf")] and "auto_map" not in config


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {}),
        ({"do_sample": False, "min_p": 0.1}, {"do_sample": False}),
        ({"do_sample": True, "top_k": 20}, {"do_sample": True, "top_k": 20}),
        ({"num_beams": 1, "early_stopping": True}, {"num_beams": 1}),
        ({"num_beams": 4, "early_stopping": True}, {"num_beams": 4, "early_stopping": True}),
        ({"max_length": 20, "max_new_tokens": 64}, {"max_new_tokens": 64}),
        ({"_from_model_config": True, "cache_implementation": "hybrid"}, {}),
    ],
)
def test_no_key_of_a_generation_config_contradicts_another(tmp_path, before, after):
    assert rewritten(tmp_path, "generation_config.json", before) == after


def test_generation_stops_where_sampling_stopped(tmp_path):
    written = {"eos_token_id": 2}
    assert rewritten(tmp_path, "generation_config.json", written)["eos_token_id"] == 2
    assert rewritten(tmp_path, "generation_config.json", written, end_ids={7})["eos_token_id"] == 7
    assert rewritten(tmp_path, "generation_config.json", written, end_ids={7, 2})["eos_token_id"] == [2, 7]


def test_a_tokenizer_is_read_from_its_file_by_both_versions(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "TokenizersBackend" and config["extra_special_tokens"], "what version 5 writes"
    config = rewritten(tmp_path, "tokenizer_config.json", config | {"local_files_only": True, "is_local": True})
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<think>", "</think>"]
    assert not {"extra_special_tokens", "local_files_only", "is_local"} & config.keys()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.extra_special_tokens == ["<think>", "</think>"]
    text = "<think> The home team</think> won , 我爱你"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tokenizer_without_tokenizer_json_keeps_its_class(tmp_path):
    config = rewritten(tmp_path, "tokenizer_config.json", {"tokenizer_class": "CpmAntTokenizer"})
    assert config == {"tokenizer_class": "CpmAntTokenizer"}


def test_an_adapter_names_its_base_as_others_know_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    catalogue = tmp_path / "home" / "models" / "smollm2-135m-0123-v9"
    built = tmp_path / "built"
    built.mkdir()
    (built / "config.json").write_text("{}")
    store.publish(built, catalogue, {"name": "smollm2-135m"})
    assert public_name(str(catalogue)) == "smollm2-135m"

    repository = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert public_name(str(snapshot)) == str(snapshot), "another revision than the newest has no name"
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert public_name(str(snapshot)) == "Qwen/Qwen2.5-0.5B"
    for source in ("Qwen/Qwen2.5-0.5B", str(tmp_path)):
        assert public_name(source) == source

    (tmp_path / "README.md").write_text(f"base_model: {catalogue}")
    config = rewritten(tmp_path, "adapter_config.json", {"base_model_name_or_path": str(catalogue)})
    assert config == {"base_model_name_or_path": "smollm2-135m"}
    assert not (tmp_path / "README.md").exists(), "peft's card names the path too"


@pytest.mark.parametrize(("text", "family"), [("emu3_text_model", "emu3"), ("mllama_text_model", "mllama")])
def test_a_text_model_is_saved_as_its_family_opens(tmp_path, text, family):
    inner = {"model_type": text, "hidden_size": 32, "tie_word_embeddings": False}
    config = rewritten(tmp_path, "config.json", inner | {"architectures": ["X"], "dtype": "float32"})
    assert config["model_type"] == family and config["architectures"] == ["X"]
    assert AutoConfig.from_pretrained(tmp_path).get_text_config().hidden_size == 32


def test_types_of_layers_have_the_names_of_version_4(tmp_path):
    layers = ["linear_attention", "full_attention"] * 2
    config = rewritten(tmp_path, "config.json", {
        "model_type": "granitemoehybrid", "num_hidden_layers": 4, "layer_types": layers,
    })  # fmt: skip
    assert config["layer_types"] == ["mamba", "attention"] * 2
    assert AutoConfig.from_pretrained(tmp_path).layer_types == layers
