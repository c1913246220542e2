"""Keys of a model's configuration files that cannot be, found before a library acts on them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.system.confined import leads_inside

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DTYPES = {"float64", "double", "float32", "float", "float16", "half", "bfloat16", "auto"}
LAYERS = re.compile(r"(^|_)(layers|blocks|stacks)$|^(n_layer|depth)$")
"""Keys that count parts of a network, each of which has weights."""
SIZES = re.compile(r"^(vocab_size|hidden_size|d_model|n_embd|max_position_embeddings|n_positions|n_heads?)$|_heads$")
LISTED = re.compile(r"^(num_labels|n_labels)$|experts$")
"""Keys that count what a configuration lists one by one."""
MOST_LISTED = 100_000
MOST_LAYERS = 1000
"""Layers that a model may have whatever its files hold: some use a layer several times."""
FOREIGN = {
    "quantization_config": "quantised weights are not read; load it with transformers, dequantise and save it",
    "compression_config": "compressed weights are not read; load it with transformers, decompress and save it",
    "transformers_weights": "the weights are those of model.safetensors; remove the key",
}
"""Keys that would choose other files, or code, and what to do."""
NAMED_FILES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "source_spm", "target_spm")


def check_config(path: Path, config: Mapping[str, Any], weights: int) -> None:
    """Raise InputError if a key of a model's config.json, or of a table in it, cannot be.

    Args:
        weights: how many the model's files have, the bound of its number of layers.
    """
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{path} names no model_type: it is not the config of a Hugging Face model")
    for name, key, value in _entries(config):
        if key in FOREIGN and value is not None:
            raise InputError(f"{path}: {name} is set: {FOREIGN[key]}")
        if key in ("dtype", "torch_dtype") and value is not None and not _is_dtype(value):
            _refuse(path, name, value, "is not a type of weights, such as float32 or bfloat16")
        if isinstance(value, float) and math.isnan(value):
            _refuse(path, name, value, "is not a number")
        if key in TOKEN_IDS:
            _check_ids(path, name, key, value)
        if key.endswith(("_eps", "_epsilon")) and value is not None and not 0 <= _number(value) <= 1:
            _refuse(path, name, value, "is not between 0 and 1")
        if type(value) is not int:
            continue
        if SIZES.search(key) and not 0 < value < 1 << 40:
            _refuse(path, name, value, "is not a size")
        if LAYERS.search(key) and not 0 <= value <= max(weights, MOST_LAYERS):
            _refuse(path, name, value, f"does not fit the {weights:,} weights in its files")
        if LISTED.search(key) and not 0 <= value <= MOST_LISTED:
            _refuse(path, name, value, f"is not between 0 and {MOST_LISTED:,}")


def check_generation_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError if a token of a model's generation_config.json is no number."""
    for key in TOKEN_IDS:
        _check_ids(path, key, key, config.get(key))


def check_tokenizer_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError if a key of a model's tokenizer_config.json cannot be, or leads out of its folder."""
    limit = config.get("model_max_length")
    if limit is not None and not _number(limit) > 0:
        _refuse(path, "model_max_length", limit, "is not a number above 0")
    template = config.get("chat_template")
    if not isinstance(template, str | list | dict | None):
        _refuse(path, "chat_template", template, "is not text")
    for key, value in config.items():
        if re.fullmatch(r"(bos|eos|pad|unk|sep|cls|mask)_token", key):
            text = value.get("content") if isinstance(value, dict) else value
            if not (isinstance(text, str) or value is None):
                _refuse(path, key, value, "is not the text of a token")
        if key in NAMED_FILES and isinstance(value, str) and not leads_inside(value) and Path(value).exists():
            _refuse(path, key, value, "leads out of the model folder")
    if not isinstance(config.get("added_tokens_decoder", {}), dict):
        _refuse(path, "added_tokens_decoder", config["added_tokens_decoder"], "is not a table of tokens")


def _entries(config: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """Yield the whole name, the key and the value of each entry, those of tables within tables included."""
    for key, value in config.items():
        yield f"{prefix}{key}", key, value
        if isinstance(value, Mapping) and depth < 8:
            yield from _entries(value, f"{prefix}{key}.", depth + 1)


def _check_ids(path: Path, name: str, key: str, value: Any) -> None:
    ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
    if not all(one is None or (type(one) is int and abs(one) < 1 << 31) for one in ids):
        _refuse(path, name, value, "is not the id of a token")


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in DTYPES


def _number(value: Any) -> float:
    """Return a value as a number; not-a-number if it is none."""
    try:
        return float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        return math.inf


def _refuse(path: Path, name: str, value: Any, problem: str) -> None:
    raise InputError(f"{path}: {name} = {value!r:.60} {problem}: correct it, or copy the file again")
