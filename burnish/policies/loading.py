"""Policies from files: a local folder or a hub id becomes a ``CausalModel``, or a ``CausalPolicy`` to train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.policies.causal_lm import CausalModel, CausalPolicy
from burnish.policies.kernels.activation_checkpointing import enable_gradient_checkpointing
from burnish.policies.pretrained import add_lora_adapter, load_merged_model, loading_errors, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
    like: CausalModel | None = None,
) -> CausalModel:
    """Loads a model and its tokenizer from a local folder or a hub id, from safetensors only.

    A folder that holds a LoRA adapter loads its base, which may be such a folder too, and merges the adapter into it.

    Raises:
        InputError: it cannot be loaded; the message says what is missing.
    """
    from transformers import AutoTokenizer

    with loading_errors(source), quiet_transformers():
        model = load_merged_model(source, getattr(torch, dtype), offline=offline)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    moved: PreTrainedModel = model.to(place)
    return CausalModel(moved, tokenizer, like=like)


def load_policy(
    source: str | Path,
    *,
    lora: Any = None,
    dtype: str = "float32",
    device: str = "auto",
    offline: bool = False,
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> CausalPolicy:
    """A policy to train, from a local folder or a hub id.

    Args:
        lora: a record with rank, alpha and targets; None trains all weights.
        seed: of the adapter's first weights.
        gradient_checkpointing: whether layers run again in the backward pass instead of keeping what they computed.

    Raises:
        InputError: as ``load_model``, or the layers cannot be run again.
    """
    # A run's "model" is a link that moves on while that run does; what it leads to now is what training starts from.
    source = Path(source).resolve() if Path(source).is_dir() else source
    loaded = load_model(source, dtype=dtype, device=device, offline=offline)
    if lora is None:
        trained = loaded.model.requires_grad_(True)

        def start() -> CausalModel:
            return load_model(source, dtype=dtype, device=device, offline=True, like=loaded)

        policy = CausalPolicy(trained, loaded.tokenizer, base=str(source), like=loaded, start=start)
    else:
        policy = CausalPolicy(
            add_lora_adapter(loaded.model, lora, source, seed), loaded.tokenizer, base=str(source), like=loaded
        )  # fmt: skip
    if gradient_checkpointing:
        enable_gradient_checkpointing(policy.model)
    return policy
