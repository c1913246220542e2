"""Model folders for Hugging Face's loaders: local folders checked, catalogue models converted once.

A catalogue model is a GGUF file, which transformers dequantises once into the cache, so that later starts just load.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from burnish.catalogue import store
from burnish.catalogue.checkpoints import refuse_damaged_checkpoint
from burnish.catalogue.entries import CatalogueEntry, lookup, names
from burnish.catalogue.fetch import fetch, file_sha256
from burnish.catalogue.hub_models import check_hub_model
from burnish.catalogue.local_models import check_model_folder
from burnish.catalogue.portable import make_portable
from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer
from burnish.registry import nearest
from burnish.system.confined import refuse_escapes
from burnish.system.parsing import given_text, toml_of
from burnish.system.paths import expanded

FORMAT = 2  # version of converted folders; raised when conversion changes, and old folders are left alone

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
        folder = _newest_weights(path, model) if (path / "recipe.toml").is_file() else path
        refuse_damaged_checkpoint(folder)
        return check_model_folder(folder)
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
    refuse_escapes(run)
    try:
        written = toml_of(given_text(run / "recipe.toml"))
    except (OSError, ValueError, RecursionError):
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
