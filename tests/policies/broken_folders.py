"""Ways to break a tiny model's folder, for tests of how it is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], object]
PROJECTION = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def keys(name: str, **changes: Any) -> Change:
    """Set keys of a JSON file, which may be new."""

    def change(folder: Path) -> None:
        path = folder / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | changes))

    return change


def content(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def link(name: str, target: str) -> Change:
    """Put a link in place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def header(**changes: Any) -> Change:
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


def weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Change:
    """Change the weights of a file in place."""

    def changed(folder: Path) -> None:
        stored = load_file(folder / name)
        change(stored)
        save_file(stored, folder / name, metadata={"format": "pt"})

    return changed


def weight(value: float) -> Change:
    return weights(lambda stored: stored["model.norm.weight"].view(-1)[-1:].fill_(value))


def index(weight_map: Any) -> Change:
    """Put an index and a shard in place of model.safetensors."""

    def change(folder: Path) -> None:
        shutil.move(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def write_adapter(folder: Path, base: Path, *, width: int = 32, layers: int = 4, rank: int = 2) -> Path:
    """Write a LoRA adapter of the query projections of a base model, with the base's tokenizer."""
    folder.mkdir()
    for path in base.glob("*token*"):
        shutil.copy(path, folder)
    described: Mapping[str, Any] = {
        "base_model_name_or_path": str(base), "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4,
        "target_modules": ["q_proj"], "lora_dropout": 0.0, "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(described))
    halves = {"A": torch.ones(rank, width), "B": torch.full((width, rank), 0.01)}
    save_file(
        {PROJECTION.format(layer, half): one.clone() for layer in range(layers) for half, one in halves.items()},
        folder / "adapter_model.safetensors",
    )
    return folder
