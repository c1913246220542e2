"""Loading of causal language models and policies from local folders and the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from burnish.policies.adapters import add_lora_adapter
from burnish.policies.causal_lm import CausalModel, CausalPolicy
from burnish.policies.chat_template import ChatSettings
from burnish.policies.kernels.mixed_precision import enable_mixed_precision
from burnish.policies.kernels.recompute import enable_gradient_checkpointing
from burnish.policies.pretrained import (
    load_merged_model,
    loading_errors,
    quiet_transformers,
    stored_dtype,
)
from burnish.policies.token_rows import check_token_rows, load_tokenizer
from burnish.protocols import Observer


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
    with loading_errors(source), quiet_transformers():
        model = load_merged_model(source, getattr(torch, dtype), offline=offline)
        tokenizer, warning = load_tokenizer(source, offline=offline)
        check_token_rows(model, tokenizer)
    if warning and observer is not None:
        observer.message(warning, level="warning")
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if chat is not None:
        chat.check(tokenizer)
    return CausalModel(model.to(target), tokenizer, like=like, chat=chat)


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
        lora: a recipe's policy.lora; None trains all weights.
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
    loaded = load_model(source, dtype=stored, device=device, offline=offline, chat=chat, observer=observer)
    if lora is None:
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
        with quiet_transformers():
            adapted = add_lora_adapter(loaded.model, lora, source, seed)
        if mixed:
            enable_mixed_precision(adapted, torch.bfloat16)
        # A copied module has its own config, which another layout may need to change.
        like = None if lora.modules_to_save or lora.target_parameters else loaded
        policy = CausalPolicy(adapted, loaded.tokenizer, base=str(source), like=like)
    if gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    return policy
