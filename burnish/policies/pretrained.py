"""Loading of transformers models, with all weights from safetensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from burnish.catalogue.adapter_keys import check_adapter_config
from burnish.catalogue.convert import resolve_model
from burnish.catalogue.local_models import (
    MOST_BASES,
    adapter_base,
    check_tokenizer_files,
    read_object,
    refuse_strange_files,
)
from burnish.catalogue.weight_headers import read_header
from burnish.errors import BurnishError, InputError, library_message
from burnish.policies.adapters import ADAPTER_WEIGHTS, merge_adapter
from burnish.policies.construction import STORED_DTYPES, construct, stored_weights


def load_merged_model(source: str | Path, dtype: torch.dtype, *, offline: bool, adapters: int = 0) -> Any:
    """Load a model; if the source is an adapter, load its base model and merge the adapter.

    transformers itself would silently apply an adapter that lies next to a model, and would load a pickled one. A base
    may be an adapter, too, up to a number of ``adapters``.
    """
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    described = find_adapter_config_file(str(source), local_files_only=offline)
    if described is None:
        return load_full_model(source, dtype, offline=offline)
    refuse_strange_files(Path(described).parent)
    weights = Path(str(cached_file(str(source), ADAPTER_WEIGHTS, local_files_only=offline)))
    check_adapter_config(Path(described), read_object(Path(described)), weights, read_header(weights))
    check_tokenizer_files(Path(described).parent)
    named = adapter_base(Path(described).parent)
    if named == str(source):
        raise ValueError("its adapter_config.json names itself as the base model")
    if adapters >= MOST_BASES:
        raise ValueError(f"its adapter_config.json leads through more than {MOST_BASES} adapters: merge some of them")
    try:
        base = resolve_model(named, offline=offline)
    except InputError as error:
        raise InputError(f"{described}: base_model_name_or_path: {error}") from error
    return merge_adapter(load_merged_model(base, dtype, offline=offline, adapters=adapters + 1), weights.parent)


def load_full_model(source: str | Path, dtype: torch.dtype, *, offline: bool) -> Any:
    """Load a transformers model with all of its weights. Raises ValueError if its files lack some."""
    from transformers import AutoModelForCausalLM

    model, loading = construct(AutoModelForCausalLM, source, dtype, offline=offline)
    if missing := sorted(loading["missing_keys"]):
        # transformers would initialise them randomly and only warn.
        raise ValueError(f"its files lack {len(missing)} weights, the first is {missing[0]}: copy or download it again")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    # Some configurations lack the key, which is false then.
    tied = getattr(model.config, "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embedding.weight:
        # The files have a head of their own, and transformers uses it whatever the config says.
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped kernels of mixtures of experts take no float64
    return model


def stored_dtype(source: str | Path) -> torch.dtype | None:
    """Return the floating-point type of most of a loaded source's weights on disk, an adapter's base included; None if
    burnish does not write that type."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if described := find_adapter_config_file(str(source), local_files_only=True):
        return stored_dtype(resolve_model(adapter_base(Path(described).parent), offline=True))
    sizes: Counter[str] = Counter()
    for one in stored_weights(source, offline=True).values():
        sizes[one.dtype] += one.count
    return STORED_DTYPES.get(sizes.most_common(1)[0][0])


@contextmanager
def loading_errors(source: str | Path) -> Iterator[None]:
    """Turn whatever a broken file makes the libraries raise into an InputError with the cause."""
    try:
        yield
    except BurnishError:
        raise
    except Exception as error:
        raise InputError(f"model '{source}' cannot be loaded: {library_message(error)}") from error


def refuse_broken_weights(model: torch.nn.Module, source: str | Path) -> None:
    """Raise InputError if a weight is not-a-number or infinite: everything that the model computes would be."""
    for name, weight in model.named_parameters():
        if not (weight.detach().sum(dtype=torch.float64).isfinite() or weight.detach().isfinite().all()):
            raise InputError(
                f"model '{source}': the weight '{name}' has values that are not finite: copy or download its "
                "safetensors files again, or take an earlier checkpoint"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and advice of transformers, and deprecation warnings between the libraries."""
    import warnings

    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it itself where GPT-2 needs it
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
