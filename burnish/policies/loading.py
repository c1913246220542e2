"""Loading of causal language models and policies from local folders and the Hugging Face hub."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from burnish.catalogue.model_files import model_files
from burnish.errors import InputError
from burnish.policies.adapters import add_lora_adapter
from burnish.policies.causal_lm import CausalModel, CausalPolicy
from burnish.policies.chat_template import ChatSettings, ChatTemplate
from burnish.policies.construction import named_errors
from burnish.policies.kernels.mixed_precision import enable_mixed_precision
from burnish.policies.kernels.recompute import enable_gradient_checkpointing
from burnish.policies.pretrained import (
    load_merged_model,
    loading_errors,
    quiet_transformers,
    refuse_broken_weights,
    stored_dtype,
)
from burnish.policies.token_rows import check_token_rows, load_tokenizer
from burnish.policies.verdicts import Verdicts
from burnish.protocols import Observer
from burnish.system.machine import resolve_device

CHAT = "chat_template.jinja"


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model, and a warning about its tokenizer, or ""."""

    model: CausalModel
    warning: str


_BASES: WeakValueDictionary[tuple[Any, ...], _Loaded] = WeakValueDictionary()
"""The frozen bases of adapters that are trained, by source, dtype, device, and the sizes and times of their files."""


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
    like: CausalModel | None = None,
    chat: ChatSettings | None = None,
    observer: Observer | None = None,
) -> CausalModel:
    """Load a model and its tokenizer from a local folder or a hub id, from safetensors only.

    If the source is a LoRA adapter, its base model (which may be an adapter, too) is loaded and the adapter is merged.
    Raises InputError with the cause if the model cannot be loaded.
    """
    loaded = _load(source, dtype, device, offline, like=like, chat=chat)
    _report(loaded.warning, observer)
    return loaded.model


def _load(
    source: str | Path, dtype: str, device: str, offline: bool, *, like: CausalModel | None, chat: ChatSettings | None
) -> _Loaded:
    with loading_errors(source), quiet_transformers():
        model = load_merged_model(source, getattr(torch, dtype), offline=offline)
        with named_errors("tokenizer"):
            tokenizer, warning = load_tokenizer(source, offline=offline)
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError(
                f"tokenizer_config.json: model_max_length = {tokenizer.model_max_length!r} is not a number"
            )
        check_token_rows(model, tokenizer)
        refuse_broken_weights(model, source)
    if like is None:
        check_chat(tokenizer, chat, source)
    elif chat is not None:
        chat.check(tokenizer)
    verdicts = None if like is not None else Verdicts(_file_stats(source), dtype, resolve_device(device))
    loaded = CausalModel(model.to(resolve_device(device)), tokenizer, like=like, chat=chat, verdicts=verdicts)
    return _Loaded(loaded, warning)


def check_chat(tokenizer: Any, chat: ChatSettings | None, source: str | Path) -> None:
    """Put a run's settings into a tokenizer. Raises InputError as ``ChatSettings.check`` and ``ChatTemplate.check``."""
    if chat is not None:
        chat.check(tokenizer)
    if tokenizer.chat_template:
        own = "template" if chat is not None and chat.template is not None else ""
        ChatTemplate(tokenizer, chat).check(own or f"model '{source}': {_template_file(source)}")


def _template_file(source: str | Path) -> str:
    from transformers.utils.hub import cached_file

    options: Any = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    return "tokenizer_config.json: chat_template" if cached_file(str(source), CHAT, **options) is None else CHAT


def _file_stats(source: str | Path) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and modification time in ns of each file of a model; [] if they are not known."""
    files: list[Path] = []
    with suppress(InputError):  # loading says what is missing
        files = model_files(source, offline=True)
    return [(str(file), (about := file.stat()).st_size, about.st_mtime_ns) for file in files]


def _report(warning: str, observer: Observer | None) -> None:
    if warning and observer is not None:
        observer.message(warning, level="warning")


def _load_base(source: str | Path, dtype: str, device: str, offline: bool) -> _Loaded:
    """Load the frozen base of an adapter, or return the one that adapters in use have."""
    stats = _file_stats(source)
    key = (str(source), dtype, resolve_device(device), *stats)
    base = _BASES.get(key)
    if base is None:
        base = _load(source, dtype, device, offline, like=None, chat=None)
        base.model.model.requires_grad_(False)
        if stats:
            _BASES[key] = base
    return base


def _add_adapter(
    base: _Loaded, source: str | Path, lora: Any, seed: int, *, mixed: bool, chat: ChatSettings | None
) -> CausalPolicy:
    tokenizer = base.model.tokenizer
    with quiet_transformers():
        adapted = add_lora_adapter(base.model.model, lora, source, seed)
    if mixed:
        enable_mixed_precision(adapted, torch.bfloat16)
    # A copied module has its own config, which another layout may need to change.
    like = None if lora.modules_to_save or lora.target_parameters else base.model
    verdicts = Verdicts(_file_stats(source), adapted.dtype, adapted.device, mixed, lora)
    adapter = CausalModel(adapted, tokenizer, like=like, chat=chat, verdicts=verdicts)
    policy = CausalPolicy(adapted, tokenizer, base=str(source), like=adapter)
    policy.frozen_base = base
    return policy


def load_policy(
    source: str | Path,
    *,
    lora: Any = None,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    chat: ChatSettings | None = None,
    save_dtype: str | None = None,
    observer: Observer | None = None,
) -> CausalPolicy:
    """Load a policy to train from a local folder or a hub id.

    Args:
        lora: a recipe's policy.lora, whose policies share the base's weights in memory; None trains all weights.
        dtype: of the weights; with "bfloat16", those that are trained are float32 and products are bfloat16.
        device: "auto" takes a GPU if there is one.
        offline: whether the hub must not be contacted.
        seed: of the adapter's initial weights.
        gradient_checkpointing: whether layers run again in the backward pass instead of storing their activations.
        save_dtype: of the saved weights; None takes that of the source's files. An adapter is saved as it is.
        observer: hears of a tokenizer that contradicts its class.

    Raises:
        InputError: as ``load_model``; or the layers do not support gradient checkpointing, or an adapter.
    """
    # A run's "model" is a link to its latest checkpoint. Resolved now, the reference stays where training starts.
    source = Path(source).resolve() if Path(source).is_dir() else source
    mixed = dtype == "bfloat16"
    # Weights that are trained, and the reference that they start from, are float32; an adapter's base stays bfloat16.
    stored = "float32" if mixed and lora is None else dtype
    if lora is None:
        loaded = load_model(source, dtype=stored, device=device, offline=offline, chat=chat, observer=observer)
        trained = loaded.model.requires_grad_(True)
        if mixed:
            enable_mixed_precision(trained, torch.bfloat16)

        def start() -> CausalModel:
            reference = load_model(source, dtype=stored, device=device, offline=True, like=loaded)
            if mixed:
                enable_mixed_precision(reference.model, torch.bfloat16)
            return reference

        policy = CausalPolicy(trained, loaded.tokenizer, base=str(source), like=loaded, start=start)
        policy.save_dtype = getattr(torch, save_dtype) if save_dtype else stored_dtype(source)
    else:
        base = _load_base(source, stored, device, offline)
        _report(base.warning, observer)
        if chat is not None:
            check_chat(base.model.tokenizer, chat, source)
        policy = _add_adapter(base, source, lora, seed, mixed=mixed, chat=chat)
    if gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    return policy
