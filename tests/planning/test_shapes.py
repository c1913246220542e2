"""Shapes of models: counts derived by hand, published counts, folders, and names that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.catalogue.entries import names
from burnish.errors import InputError
from burnish.planning.shapes import PUBLISHED, SIZES, Shape, model_shape

TINY = Shape(
    "tiny", layers=2, hidden=4, heads=2, key_value_heads=1, head_size=2, intermediate=8, vocabulary=10, tied=False
)  # fmt: skip
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
}
"""The makers' counts. Gemma 3 and Qwen 3 have further norms, of 0.02% of their weights at most, that are left out."""


def test_the_weights_of_a_tiny_model() -> None:
    # Queries 4 x 4 = 16, keys and values 2 x 4 = 8 each, output 4 x 4 = 16; gate, up and down 8 x 4 = 32 each: 144.
    assert TINY.layer_weights == 144
    # Two layers, and the head of 10 x 4.
    assert TINY.products == 2 * 144 + 40
    # Norms: two of 4 in each of two layers and one at the end, 20. The embedding has another 10 x 4.
    assert TINY.parameters == 328 + 20 + 40
    # Outputs and inputs added up: 8 + 6 + 6 + 8 + 12 + 12 + 12 = 64 per layer and rank.
    assert TINY.adapter_weights(3) == 2 * 3 * 64


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_count_of_a_published_model_is_its_makers(name: str) -> None:
    assert PUBLISHED[name].parameters == PARAMETERS[name]


def test_every_model_of_the_catalogue_has_a_shape() -> None:
    assert set(names("model")) <= set(PUBLISHED)


@pytest.mark.parametrize("name", ["qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-Math-7B"])
def test_a_hub_id_names_a_published_shape(name: str) -> None:
    assert model_shape(name) == (PUBLISHED["qwen2.5-7b"], "published")


def test_a_size_is_named_as_an_assumption() -> None:
    assert model_shape("7b") == (PUBLISHED["qwen2.5-7b"], "assumed: 7b has the shape of qwen2.5-7b")
    assert model_shape("1.5B")[0] is PUBLISHED["qwen2.5-1.5b"]
    assert all(PUBLISHED[name].name.endswith(size) for size, name in SIZES.items())


CONFIG = {
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 10,
}


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_folder_is_read_from_its_config(inside: str, tmp_path: Path) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "config.json").write_text(json.dumps(CONFIG))
    shape, origin = model_shape(str(tmp_path))
    # head_dim is 4 / 2, and Llama's head is not tied unless the config says so.
    assert shape.parameters == TINY.parameters and shape.head_size == 2
    assert origin == str(tmp_path / inside / "config.json")


def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    text = {**CONFIG, "model_type": "gemma3_text", "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    shape, _ = model_shape(str(tmp_path))
    assert shape.tied and shape.head_size == 8 and not shape.biased
    del text["num_key_value_heads"]
    (tmp_path / "config.json").write_text(json.dumps({**text, "model_type": "qwen2"}))
    shape, _ = model_shape(str(tmp_path))
    assert shape.biased and shape.key_value_heads == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json; name the folder of a model or of a run"),
        ("[", "cannot be read as JSON"),
        ("[]", "model_type = None: burnish plan estimates dense models"),
        (json.dumps({**CONFIG, "model_type": "mixtral"}), "model_type = 'mixtral': burnish plan estimates dense"),
        (json.dumps({**CONFIG, "vocab_size": "many"}), "vocab_size = 'many': must be a whole number above 0"),
        (json.dumps({**CONFIG, "hidden_size": None}), "hidden_size = None: must be a whole number above 0"),
    ],
)
def test_a_folder_that_cannot_be_estimated_is_refused(config: str | None, message: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError) as refused:
        model_shape(str(tmp_path))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["qwen2.5-8b", "", "runs/none", "someone/1.5b"])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="neither a folder nor a model whose shape is known"):
        model_shape(name)


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"model_type": "llama", "hidden_size": 1' + "0" * 400 + "}", "hidden_size = 1000.* at most 16,777,216"),
        (
            '{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, '
            '"num_key_value_heads": 0, "intermediate_size": 8, "vocab_size": 8}', "num_key_value_heads = 0: must be",
        ),
    ],
)  # fmt: skip
def test_sizes_that_no_model_has_are_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        model_shape(str(tmp_path))
