"""Keys of a LoRA adapter's configuration, held against its weights before peft makes layers of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.catalogue.weight_headers import StoredWeight
from burnish.errors import InputError

FIRST_HALVES = re.compile(r"\.lora_(embedding_)?A(\.|$)")
"""Names of the weights whose first size is the adapter's rank, or a multiple of it for experts."""
MOST_ELSE = 1024
"""Largest rank of an adapter without such weights, which trains whole modules only."""
FOREIGN = ("megatron_config", "layer_replication")
"""Keys by which peft imports a module of their choice, or builds another model."""


def check_adapter_config(
    path: Path, config: Mapping[str, Any], weights: Path, header: Mapping[str, StoredWeight]
) -> None:
    """Raise InputError if a key of an adapter_config.json cannot be, or does not fit the adapter's weights."""
    kind = config.get("peft_type")
    if kind != "LORA":
        problem = "is a learned prompt and cannot be merged" if re.search("PROMPT|PREFIX", str(kind)) else "is not LORA"
        _refuse(path, "peft_type", kind, f"{problem}: merge it with peft if it can be, and save the model instead")
    for key in FOREIGN:
        if config.get(key):
            _refuse(path, key, config[key], "is not supported: merge the adapter where it was trained")
    ranks, scales = _table(path, config, "rank_pattern"), _table(path, config, "alpha_pattern")
    every = {"r": config.get("r", 8), **{f"rank_pattern['{name}']": value for name, value in ranks.items()}}
    found = {name: one.shape[0] for name, one in header.items() if FIRST_HALVES.search(name) and one.shape}
    for name, rank in every.items():
        if type(rank) is not int or rank < 1:
            _refuse(path, name, rank, "is not a rank")
        if rank > max(found.values(), default=MOST_ELSE):
            _refuse(
                path, name, rank, f"does not fit {weights.name}, whose largest rank is {max(found.values(), default=0)}"
            )
    if not ranks and not config.get("target_parameters"):
        for name, rank in found.items():
            if rank != every["r"]:
                _refuse(path, "r", every["r"], f"does not fit {weights.name}, where '{name:.80}' has the rank {rank}")
    scale = config.get("lora_alpha", 8)
    for name, value in {"lora_alpha": scale, **{f"alpha_pattern['{key}']": one for key, one in scales.items()}}.items():
        if type(value) not in (int, float) or not 0 < value < math.inf or value > 1e12:
            _refuse(path, name, value, "is not a number above 0")
    dropout = config.get("lora_dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout <= 1:
        _refuse(path, "lora_dropout", dropout, "is not between 0 and 1")
    for key in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters"):
        _check_names(path, key, config.get(key))


def _table(path: Path, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        _refuse(path, key, value, "is not a table")
    return dict(value)


def _check_names(path: Path, key: str, value: Any) -> None:
    if value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return
    if not isinstance(value, str):
        _refuse(path, key, value, "is not a list of names")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        _refuse(path, key, value, f"is not a pattern ({error})")


def _refuse(path: Path, name: str, value: Any, problem: str) -> None:
    advice = "" if ": " in problem else ": correct it, or copy the adapter again"
    raise InputError(f"{path}: {name} = {value!r:.60} {problem}{advice}")
