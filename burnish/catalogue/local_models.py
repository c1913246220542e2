"""Model folders on this machine, checked before a library reads them.

A folder may come from somebody else. What is checked here costs milliseconds: which files there are and where links lead,
the keys of the JSON files, and the headers of the weights.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.catalogue.adapter_keys import check_adapter_config
from burnish.catalogue.config_keys import check_config, check_generation_config, check_tokenizer_config
from burnish.catalogue.weight_headers import SHARDS, WEIGHTS, StoredWeight, read_header, shard_names
from burnish.errors import InputError
from burnish.system.confined import kind_of_file, leads_inside
from burnish.system.files import LARGEST_TEXT

START = "start"
"""Folder of a run with its own copy of the model that it began from."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer*", "vocab*", "*.spm", "spiece.model")
READ = (
    "*.json", "*.safetensors", "*.jinja", "*.model", "*.spm", "*.tiktoken", "tokenizer*", "vocab*", "merges*",
    "additional_chat_templates/*",
)  # fmt: skip
"""What transformers, peft and the tokenizers read of a model folder."""
DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
"""Files for which transformers leaves model.safetensors aside."""
MOST_BASES = 8
"""Adapters on top of one another."""


def check_model_folder(folder: Path, *, adapters: int = 0) -> Path:
    """Return the folder if a causal language model can be loaded from it; only safetensors weights are accepted.

    Raises InputError that names what is missing: config, weights, a shard, the tail of a shard, or the tokenizer; a link
    that leads out of the folder; or a key of a JSON file that cannot be.

    Args:
        adapters: how many adapters name this folder as their base.
    """
    refuse_strange_files(folder)
    config = folder / "config.json"
    if (folder / ADAPTER_CONFIG).is_file():
        return _check_adapter(folder, adapters)
    if not config.is_file():
        inner = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
        hint = f" (its folder '{inner[0]}' has one: name that)" if inner else ""
        raise InputError(f"model folder {folder} has no config.json{hint}")
    weights = {name: one for shard in _shards(folder) for name, one in read_header(shard).items()}
    check_model_files(folder, weights)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise InputError(f"model folder {folder} has no tokenizer: save it there with tokenizer.save_pretrained(...)")
    return folder


def check_model_files(folder: Path, weights: Mapping[str, StoredWeight]) -> None:
    """Raise InputError if a key of the JSON files of a model with these weights cannot be."""
    check_config(folder / "config.json", read_object(folder / "config.json"), len(weights))
    generation = folder / "generation_config.json"
    if generation.is_file():
        check_generation_config(generation, read_object(generation))
    check_tokenizer_files(folder)


def check_tokenizer_files(folder: Path) -> None:
    """Raise InputError if a file of a tokenizer is not what it should be, or a key in it cannot be."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            described = read_object(folder / name)
            if name == "tokenizer_config.json":
                check_tokenizer_config(folder / name, described)
    for path in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")):
        try:
            path.read_text(encoding="utf-8")
        except ValueError as error:
            raise InputError(f"{path} is not text in UTF-8 ({error}): copy or download it again") from error


def refuse_strange_files(folder: Path) -> None:
    """Raise InputError if a file that loading reads is no file, leads out of its folder, or is too large for a text.

    The cache of the hub has links to its own ``blobs``, as have folders that were made of it; they are accepted.
    """
    for path in sorted({path for pattern in READ for path in folder.glob(pattern)}):
        text = path.suffix != ".safetensors"
        try:
            target = path.resolve(strict=True)
            about = target.stat()
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} is a link that leads nowhere: remove it, or copy what it led to") from error
        if stat.S_ISDIR(about.st_mode):
            continue
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} is neither a file nor a folder but a {kind_of_file(about.st_mode)}: remove it")
        if path.is_symlink() and not _may_lead_to(folder, target):
            raise InputError(
                f"{path} is a link that leads out of the model folder, to {os.readlink(path)}: replace it by what it leads "
                "to if you trust that, or remove it"
            )
        if text and about.st_size > LARGEST_TEXT:
            raise InputError(f"{path} has {about.st_size:,} bytes, and at most {LARGEST_TEXT:,} are read")
        if DISTRIBUTED.fullmatch(path.name):
            raise InputError(f"{path} is a part of a distributed checkpoint: save the model with save_pretrained(...)")


def _may_lead_to(folder: Path, target: Path) -> bool:
    blobs = target.parent
    return target.is_relative_to(folder.resolve()) or (
        blobs.name == "blobs" and blobs.parent.name.startswith("models--")
    )


def _check_adapter(folder: Path, adapters: int) -> Path:
    """Check a LoRA adapter and the base model that it names; a config.json next to the adapter belongs to the base."""
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise InputError(
                f"adapter folder {folder} holds pickled weights (adapter_model.bin), which can run code when they are "
                "loaded: save the adapter as safetensors where you trust it, and name that folder"
            )
        raise InputError(f"adapter folder {folder} has no weights: {ADAPTER_WEIGHTS} is missing")
    config = folder / ADAPTER_CONFIG
    base = adapter_base(folder)
    if Path(base).is_dir():
        if Path(base).samefile(folder):
            raise InputError(f"{config} names its own folder as the base model: write another one")
        if adapters >= MOST_BASES:
            raise InputError(
                f"{config}: base_model_name_or_path leads through more than {MOST_BASES} adapters: merge some of them"
            )
        check_model_folder(Path(base), adapters=adapters + 1)
    elif Path(base).is_absolute():
        raise InputError(
            f"the adapter in {folder} belongs to the model {base}, which does not exist: set "
            "base_model_name_or_path in adapter_config.json to the model's folder on this machine"
        )
    if whole := sorted(path.name for path in folder.glob("model*.safetensors")):
        raise InputError(
            f"model folder {folder} holds a whole model ({whole[0]}) and an adapter (adapter_config.json): move one of "
            "them to a separate folder"
        )
    check_adapter_config(config, read_object(config), weights, read_header(weights))
    check_tokenizer_files(folder)
    return folder


def adapter_base(folder: Path) -> str:
    """Return the name or path of an adapter's base model.

    A path that begins with ``./`` is relative to the adapter. A run's own copy of its base is found if the run moved.
    Raises InputError if its config names none, or one whose path leads upwards.
    """
    config = folder / ADAPTER_CONFIG
    base = read_object(config).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{config} names no base model: write base_model_name_or_path into it")
    if not isinstance(base, str) or (not Path(base).is_absolute() and not leads_inside(base)):
        raise InputError(
            f"{config}: base_model_name_or_path = {base!r:.100} is neither a hub id nor a folder: write an absolute "
            "path, or one within the adapter's folder that begins with ./"
        )
    if base.startswith("./"):
        return str(folder / base)
    if Path(base).is_absolute() and not Path(base).is_dir() and Path(base).name == START:
        moved = folder.resolve().parents[2] / START
        return str(moved) if moved.is_dir() else base
    return base


def _shards(folder: Path) -> Iterator[Path]:
    index, whole = folder / SHARDS, folder / WEIGHTS
    shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
    if whole.is_file() and shards:
        raise InputError(
            f"model folder {folder} holds its weights twice, as model.safetensors and in shards ({shards[0]}), and one of "
            "them may be older: delete the older one"
        )
    if index.is_file():
        names = shard_names(index, read_object(index))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"model folder {folder} lacks {len(missing)} of {len(names)} shards, the first is {missing[0]}: "
                "copy it there, or download the model again"
            )
        yield from (folder / name for name in names)
        return
    if whole.is_file():
        yield whole
        return
    if pickled := sorted(path.name for pattern in PICKLED for path in folder.glob(pattern)):
        raise InputError(
            f"model folder {folder} holds pickled weights ({pickled[0]}), which can run code when they are loaded: "
            "save the model as safetensors where you trust it, and name that folder"
        )
    raise InputError(f"model folder {folder} has no weights: model.safetensors is missing")


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model. Raises InputError if it has none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): copy or download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object with keys: copy or download it again")
    return value
