"""Construction of transformers models from files that may be hostile: our own choices, and no more than the files hold."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from burnish.catalogue.config_keys import LAYERS, LISTED
from burnish.catalogue.local_models import check_model_files, read_object, refuse_strange_files
from burnish.catalogue.weight_headers import SHARDS, WEIGHTS, StoredWeight, read_header, shard_names
from burnish.errors import BurnishError, library_message, one_line

LAYER = re.compile(r"((?:.*\.)?(?:layers|h|blocks?)\.)(\d+)\.")
"""Names of a layer's weights: what is before its number, and the number."""
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Names of floating-point types in a safetensors header."""
TIMES, MORE_PARAMETERS, MORE_NUMBERS, MORE_BYTES = 4, 1000, 1 << 24, 1 << 30
"""A model may have so many times the parameters and numbers of its files, since it may tie some, and so many more; and
constants of as many bytes as its files have numbers in 64 bits, and so many more."""


def construct(auto_model: Any, source: str | Path, dtype: torch.dtype, *, offline: bool) -> tuple[Any, dict[str, Any]]:
    """Return a transformers model with all of its weights from safetensors files, and the names of those they lack.

    The files' keys and headers are checked first. The attention implementation, kernels and the form of outputs are not
    taken from the config, and code in the folder never runs.

    Raises:
        InputError: a file or a key cannot be.
        ValueError: the config and the weights do not fit each other.
    """
    from transformers import AutoConfig, GenerationConfig
    from transformers.utils.hub import cached_file

    local: Any = {"local_files_only": offline, "trust_remote_code": False}
    config_file = Path(str(cached_file(str(source), "config.json", local_files_only=offline)))
    refuse_strange_files(config_file.parent)
    described, weights = read_object(config_file), stored_weights(source, offline=offline)
    check_model_files(config_file.parent, weights)
    if config_file.with_name("generation_config.json").is_file():
        with named_errors("generation_config.json"):
            GenerationConfig.from_pretrained(source, local_files_only=offline)
    try:
        config = AutoConfig.from_pretrained(source, **local)
        _make_own_choices(config)
        with _bounded(weights, described):
            model, loading = auto_model.from_pretrained(
                source, config=config, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
                output_loading_info=True, **local,
            )  # fmt: skip
    except BurnishError:
        raise
    except Exception as error:
        cause = _cause(described, error)
        raise ValueError(f"config.json{' ' if cause.startswith('asks') else ': '}{cause}") from error
    for name, stored, built in sorted(loading["mismatched_keys"], key=str):
        sizes = [size for size in built if size not in stored] or list(built)
        raise ValueError(
            f"config.json asks for a weight '{name}' of shape {list(built)}{_named(described, sizes)}, and that in the "
            f"safetensors file has {list(stored)}: correct it, or copy the file again"
        )
    for name, _ in model.named_parameters():
        if name in weights and weights[name].dtype not in STORED_DTYPES:
            raise ValueError(
                f"its weight '{name}' has the type {weights[name].dtype}: quantised weights are not read; load it with "
                "transformers, dequantise and save it"
            )
    _refuse_left_layers(model, described, sorted(loading["unexpected_keys"]))
    _check_ids(model, config_file)
    return model, loading


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn whatever a file makes a library raise into a ValueError that begins with the file's name."""
    try:
        yield
    except BurnishError:
        raise
    except Exception as error:
        raise ValueError(f"{name}: {library_message(error)}") from error


def _refuse_left_layers(model: Any, described: Mapping[str, Any], unused: Sequence[str]) -> None:
    """Raise ValueError if the files have layers that the config does not count, besides those that predict ahead."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not unused or not isinstance(count, int):
        return
    ahead = sum(value for name, value in _values(described) if type(value) is int and re.search("nextn|mtp", name))
    prefixes = {found[1] for name, _ in model.named_parameters() if (found := LAYER.match(name))}
    for name in unused:
        found = LAYER.match(name)
        if found and found[1] in prefixes and int(found[2]) >= count + ahead:
            raise ValueError(
                f"config.json: num_hidden_layers = {count}, and its files have more layers (such as '{name}'): correct "
                "it, or save the model without them"
            )


def _check_ids(model: Any, config_file: Path) -> None:
    """Raise ValueError if a file names a token beyond the embedding that begins or ends a text.

    A number that a config class fills in by itself is no mistake of the file.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    for path in (config_file, config_file.with_name("generation_config.json")):
        for name, value in _values(read_object(path) if path.is_file() else {}):
            key = name.rpartition(".")[2]
            if key not in ("bos_token_id", "eos_token_id") or value == getattr(type(model.config), key, None):
                continue
            for one in value if isinstance(value, list) else [value]:
                if one is not None and one >= rows:
                    raise ValueError(f"{path.name}: {name} = {one} is beyond the model's {rows} rows of embeddings")


def stored_weights(source: str | Path, *, offline: bool) -> dict[str, StoredWeight]:
    """Return what the files of a model's weights have, by name; those of a hub id are downloaded."""
    from transformers.utils.hub import cached_file

    options: Any = {"local_files_only": offline, "_raise_exceptions_for_missing_entries": False}
    names = [WEIGHTS]
    if cached_file(str(source), WEIGHTS, **options) is None and (index := cached_file(str(source), SHARDS, **options)):
        names = shard_names(Path(str(index)), read_object(Path(str(index))))
    files = [cached_file(str(source), name, **options) for name in names]
    return {name: one for file in files if file is not None for name, one in read_header(Path(str(file))).items()}


def _make_own_choices(config: Any) -> None:
    """Remove from a config, and those in it, what chooses code or the form of outputs instead of describing the model."""
    from transformers import PretrainedConfig

    config._attn_implementation_internal = config._experts_implementation_internal = None
    for key in ("fusion_config", "distributed_config"):
        if getattr(config, key, None) is not None:
            setattr(config, key, None)
    config.return_dict, config.output_hidden_states = True, False
    if getattr(config, "output_attentions", False):
        config.output_attentions = False
    if hasattr(config, "chunk_size_feed_forward"):
        config.chunk_size_feed_forward = 0
    for one in vars(config).values():
        if isinstance(one, PretrainedConfig):
            _make_own_choices(one)


@contextmanager
def _bounded(weights: Mapping[str, StoredWeight], described: Mapping[str, Any]) -> Iterator[None]:
    """Raise ValueError, in the block, once a model that is being built could not be filled from its files.

    transformers builds a model without memory and fills it afterwards; weights that the files lack would get memory, too.
    """
    stored, thread = sum(one.count for one in weights.values()), threading.get_ident()
    parameters = numbers = constants = 0

    def add_parameter(module: nn.Module, name: str, value: Any) -> None:
        nonlocal parameters, numbers
        if not isinstance(value, Tensor) or value.device.type != "meta" or threading.get_ident() != thread:
            return
        parameters, numbers = parameters + 1, numbers + value.numel()
        if numbers > TIMES * stored + MORE_NUMBERS:
            asked = f"a weight '{type(module).__name__}.{name}' of shape {list(value.shape)}{_named(described, value.shape)}"
            raise ValueError(f"asks for {asked}, and its files have {stored:,} numbers")
        if parameters > TIMES * len(weights) + MORE_PARAMETERS:
            raise ValueError(f"asks for more weights than its files have, {len(weights):,}{_most_layers(described)}")

    def add_constant(module: nn.Module, name: str, value: Any) -> None:
        nonlocal constants
        if not isinstance(value, Tensor) or value.device.type != "meta" or threading.get_ident() != thread:
            return
        constants += value.nbytes
        if constants > 8 * stored + MORE_BYTES:
            named = _named(described, value.shape)
            asked = f"constants '{type(module).__name__}.{name}' of shape {list(value.shape)}{named}"
            raise ValueError(f"asks for {asked}, and its files have {stored:,} numbers")

    hooks: Any = modules
    handles = [
        hooks.register_module_parameter_registration_hook(add_parameter),
        hooks.register_module_buffer_registration_hook(add_constant),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named(described: Mapping[str, Any], sizes: Sequence[int]) -> str:
    """Return the keys of a config that give the largest of these sizes that some give, in brackets; "" if none does."""
    for size in sorted(sizes, reverse=True):
        names = [name for name, value in _values(described) if type(value) is int and value == size]
        if names:
            return f" ({' or '.join(names[:4])} = {size})"
    return ""


def _most_layers(described: Mapping[str, Any]) -> str:
    counts = {
        name: value
        for name, value in _values(described)
        if type(value) is int and (LAYERS.search(name) or LISTED.search(name))
    }
    most = max(counts, key=lambda name: counts[name], default=None)
    return "" if most is None else f" ({most} = {counts[most]})"


def _cause(described: Mapping[str, Any], error: Exception) -> str:
    """Return the message of an error in the construction of a model, after the key that it is about, if it names one."""
    text = one_line(error)[:300]
    if isinstance(error, AssertionError) and "Padding_idx" in text:
        return f"pad_token_id = {described.get('pad_token_id')} is beyond the rows of the embedding"
    for name, value in _values(described):
        key = name.rpartition(".")[2]
        if isinstance(value, str) and len(value) > 2 and f"'{value}'" in text and key != "model_type":
            return f"{name} = {value!r:.60}: {library_message(error)}"
    return library_message(error)


def _values(described: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in described.items():
        yield prefix + key, value
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key}.")
