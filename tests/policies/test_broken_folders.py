"""Broken model folders: whatever the libraries raise in loading is one line that names the model."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bench.tiny_models import write_tiny_model
from burnish.errors import InputError
from burnish.policies.loading import load_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_tiny_model("llama", tmp_path_factory.mktemp("whole") / "llama")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def keys(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def header(**changes: Any) -> Callable[[Path], None]:
    """Change the entry of the first weight in the header of model.safetensors."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        entries = json.loads(raw[8 : 8 + size])
        next(entry for name, entry in entries.items() if name != "__metadata__").update(changes)
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return change


def weight(value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights["model.norm.weight"].view(-1)[-1] = value
        save_file(weights, path, metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keys("config.json", num_attention_heads=3), "not a multiple of the number of att"),
        (keys("config.json", rms_norm_eps="x"), "'rms_norm_eps' expected float"),
        (keys("config.json", eos_token_id="x"), "'eos_token_id'"), (keys("config.json", pad_token_id=10**9), "Padding_idx"),
        (keys("config.json", head_dim=7), "even rotary dimension"), (keys("config.json", layer_types=["x"]), "layer_types"),
        (keys("config.json", initializer_range=math.nan), "initializer_range"),
        (header(shape=[-1, 4]), "invalid value: integer `-1`"), (header(dtype="Q9"), "unknown variant `Q9`"),
        (header(shape=[2**62, 2**62]), "overflow computing buffer size"),
        (weight(math.nan), r"'model\.norm\.weight' has values that are not finite"),
        (weight(-math.inf), r"'model\.norm\.weight' has values that are not finite"),
        (keys("tokenizer_config.json", model_max_length="x"), "model_max_length = 'x' is not a number"),
        (keys("tokenizer_config.json", eos_token=3), "eos_token has to be"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "TypeError"),
        (lambda folder: (folder / "generation_config.json").write_text("[]"), "TypeError"),
    ],
)  # fmt: skip
def test_one_line_names_the_model_and_the_cause(whole, tmp_path: Path, change, message: str) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path, offline=True)
    assert str(caught.value).startswith(f"model '{tmp_path}'") and "\n" not in str(caught.value)
