"""From a name to a folder that Hugging Face's loaders take: catalogue models are converted once, local folders checked.

A catalogue model is a GGUF file with quantised weights. transformers dequantises it; what is kept is a plain float32
model in safetensors with tokenizer and chat template, so that every later start is an ordinary load.
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
from typing import TYPE_CHECKING, Any

from burnish.catalogue import store
from burnish.catalogue.entries import CatalogueEntry, lookup, names
from burnish.catalogue.fetch import fetch, sha256_of
from burnish.errors import BurnishError, InputError
from burnish.registry import nearest
from burnish.system.paths import expanded

if TYPE_CHECKING:
    from burnish.protocols import Observer

FORMAT = 1  # of a converted folder; a change of what conversion writes raises it, and old folders are left alone
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer*", "vocab*", "*.spm", "spiece.model")

# GGUF names the tokenizer's pre-tokenizer ("smollm") and transformers takes the plain byte-level one for it. The
# difference: SmolLM cuts digits off first, which matters where several spaces stand before a number.
DIGITS_FIRST = frozenset({"smollm2-135m"})


def model_folder(name: str, *, offline: bool = False, observer: Observer | None = None) -> Path:
    """The folder of a catalogue model: float32 safetensors, config, tokenizer, chat template, generation config.

    The first call fetches and converts (about 540 MB on disk for smollm2-135m); it is kept, and later calls return at
    once. Two processes that call at the same time convert once.

    Raises:
        InputError: no such model; offline and not fetched yet; terms that nobody has accepted; the cache folder cannot be
            written.
        BurnishError: the download failed, or the disk is full.
    """
    entry = lookup(name)
    if entry.kind != "model":
        raise InputError(f"'{name}' is a data set, not a model; models in the catalogue: {', '.join(names('model'))}")
    place = store.home() / "models" / f"{name}-{entry.weights.sha256[:12]}-v{FORMAT}"
    if store.published(place) is not None:
        return place
    found = fetch(name, offline=offline, observer=observer)
    pieces = [path for part in entry.parts for path in fetch(part, offline=offline, observer=observer).values()]
    doing = f"converting {name}"
    with store.workplace(f"{name}.model", doing, observer) as temporary:
        if store.published(place) is not None:  # done by another process while this one waited
            return place
        if observer:
            observer.message(f"{doing} to safetensors, once (about {max(20, entry.weights.size // 4_000_000)} s)")
        with store.cache_errors(doing):
            weights = _joined(entry, pieces, temporary) if pieces else found[entry.weights.path]
            built = temporary / "model"
            _convert(entry, weights, built)
            facts = {"name": name, "source": entry.requirement, "sha256": entry.weights.sha256}
            store.publish(built, place, {**facts, "licence": entry.licence, "notice": entry.notice})
    return place


def _joined(entry: CatalogueEntry, pieces: Sequence[Path], folder: Path) -> Path:
    """The one file that pieces make. Raises BurnishError where it is not the catalogue's."""
    whole = folder / entry.weights.path
    with whole.open("wb") as target:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
    if sha256_of(whole) != entry.weights.sha256:
        raise BurnishError(
            f"{entry.name}: its pieces do not make the file of the catalogue: remove them and fetch again"
        )
    return whole


def resolve_model(model: str, *, offline: bool = False, observer: Observer | None = None) -> Path | str:
    """What ``policy.model`` means: a catalogue name, a run folder, a model folder, or a hub id.

    Returns:
        A folder that was checked, or the hub id as it stands: the loader brings it, with ``local_files_only`` when
        offline.

    Raises:
        InputError: nothing can be meant by it, the run has no checkpoint, or the folder cannot be loaded; the message says
            what is missing.
        BurnishError: as ``model_folder``.
    """
    if model in names():
        return model_folder(model, offline=offline, observer=observer)
    path = expanded(model)
    if model and path.is_dir():
        return check_model_folder(_of_run(path, model) if (path / "recipe.toml").is_file() else path)
    if model and path.exists():
        raise InputError(f"model '{model}' is a file: name the folder that holds config.json and *.safetensors")
    parts = model.split("/")
    if len(parts) == 2 and parts[0] == "runs":  # where run folders go
        raise InputError(
            f"model '{model}': there is no such folder. It is meant to be an earlier run: make it first (a recipe that "
            "starts from one says how at its top), or name another model: --set policy.model=..."
        )
    # A hub id has at most one slash; "runs/model" is meant as a path where there is a folder "runs".
    if (
        model.startswith((".", "/", "~"))
        or "\\" in model
        or len(parts) > 2
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    ):
        raise InputError(f"model '{model}': there is no such folder")
    hint = nearest(model, names("model"))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or (len(parts) == 1 and hint):
        raise InputError(
            f"model '{model}' is no catalogue name{hint}, no folder and no hub id; "
            f"catalogue: {', '.join(names('model'))}"
        )
    return model


def _of_run(run: Path, name: str) -> Path:
    """The newest weights of a run folder. Raises InputError where it has none, or none of a language model."""
    try:
        written = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except ValueError:
        written = {}
    verb, policy = written.get("kind", "train"), written.get("policy")
    use = policy.get("use", "causal_lm") if isinstance(policy, dict) else "causal_lm"
    if (run / "model").is_dir() and use != "causal_lm":
        raise InputError(
            f'{name}: this run trained policy.use = "{use}", which is no causal language model; what it has reached stands '
            "in its evaluation.json"
        )
    if (run / "model").is_dir():
        return run / "model"
    raise InputError(f"{name}: this run has no checkpoint yet; resume with: burnish {verb} --resume {name}")


def check_model_folder(folder: Path) -> Path:
    """The folder, where a causal language model can be loaded from it; only weights in safetensors are taken.

    Raises InputError that names the first thing missing: config, weights, a shard, the tail of a shard, the tokenizer.
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
    if not any(True for pattern in TOKENIZERS for _ in folder.glob(pattern)):
        raise InputError(f"model folder {folder} has no tokenizer: save it there with tokenizer.save_pretrained(...)")
    return folder


def _check_adapter(folder: Path) -> Path:
    """A folder that holds a LoRA adapter: its weights, and the base model where it says that is.

    A config.json beside the adapter is the base's and changes nothing; a whole model beside it is one too many.
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise InputError(
                f"adapter folder {folder} holds pickled weights (adapter_model.bin), which can run code when they are "
                "loaded: save the adapter as safetensors where you trust it, and name that folder"
            )
        raise InputError(f"adapter folder {folder} has no weights: adapter_model.safetensors is missing")
    _check_shard(weights)
    base = str(_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if not base:
        raise InputError(f"{folder / 'adapter_config.json'} names no base model: write base_model_name_or_path into it")
    if Path(base).is_dir():
        if Path(base).samefile(folder):
            raise InputError(
                f"{folder / 'adapter_config.json'} names its own folder as the base model: write another one"
            )
        check_model_folder(Path(base))
    elif Path(base).is_absolute():
        raise InputError(
            f"the adapter in {folder} belongs to the model {base}, which is not there: put the model's place on this "
            "machine into adapter_config.json as base_model_name_or_path"
        )
    if whole := sorted(path.name for path in folder.glob("model*.safetensors")):
        raise InputError(
            f"model folder {folder} holds a whole model ({whole[0]}) and an adapter (adapter_config.json): which of them "
            "is meant? Move one into a folder of its own"
        )
    return folder


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map: copy it again from where the model came from")
        shards = sorted({str(name) for name in weight_map.values()})
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"model folder {folder} lacks {len(missing)} of {len(shards)} shards, the first is {missing[0]}: "
                "copy it there, or download the model again"
            )
        return [folder / name for name in shards]
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"model folder {folder} holds pickled weights ({pickled[0]}), which can run code when they are loaded: "
            "save the model as safetensors where you trust it, and name that folder"
        )
    raise InputError(f"model folder {folder} has no weights: model.safetensors is missing")


def _check_shard(shard: Path) -> None:
    """A safetensors file is 8 bytes of header length, a JSON header, then exactly the bytes that the header names."""
    size = shard.stat().st_size
    try:
        with shard.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header: Any = json.loads(file.read(length)) if length <= size - 8 else None
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        header, ends, length = None, [], 0
    if header is None:
        raise InputError(f"{shard} is no whole safetensors file ({size:,} bytes): copy or download it again")
    if size != 8 + length + max(ends, default=0):
        raise InputError(
            f"{shard} has {size:,} bytes where its header asks for {8 + length + max(ends, default=0):,}: "
            "copy or download it again"
        )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): copy or download it again") from error
    return value if isinstance(value, dict) else {}


def _convert(entry: CatalogueEntry, weights: Path, folder: Path) -> None:
    """Dequantises a GGUF file into a plain Hugging Face folder. Raises OSError where the disk fails."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto_model: Any = AutoModelForCausalLM  # its class methods carry no types
    try:
        with _quiet():
            source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
            quantised = auto_model.from_pretrained(**source, dtype=torch.float32, local_files_only=True)
            described = quantised.config.to_dict()
            for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
                described.pop(key, None)
            config = type(quantised.config).from_dict({**described, "architectures": [type(quantised).__name__]})
            # Built on the meta device: no time is spent on random weights that are replaced at once.
            with torch.device("meta"):
                plain = auto_model.from_config(config, dtype=torch.float32)
            plain.load_state_dict(quantised.state_dict(), strict=True, assign=True)
            plain.tie_weights()
            plain.generation_config = quantised.generation_config
            plain.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(**source, local_files_only=True)
            tokenizer.model_max_length = config.max_position_embeddings
            for key in ("local_files_only", "is_local"):  # how it was loaded here is no part of the tokenizer
                tokenizer.init_kwargs.pop(key, None)
            if entry.name in DIGITS_FIRST:
                _cut_digits_first(tokenizer)
            tokenizer.save_pretrained(folder)
        # safetensors keeps its file to its owner; a shared cache folder is as readable as the umask says.
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
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
    """transformers' own bars and notes speak of loading a file that nobody asked to see."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    reader: Any = modeling_gguf_pytorch_utils
    level, bars, bar = logging.get_verbosity(), logging.is_progress_bar_enabled(), getattr(reader, "tqdm", None)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if bar is not None:  # the GGUF reader's bar takes no orders from transformers' settings
        reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar is not None:
            reader.tqdm = bar
        if bars:
            logging.enable_progress_bar()
