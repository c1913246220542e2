"""Weights and optimizer state that several processes hold in parts, saved by torch.distributed.checkpoint.

Each process writes what it has to a safetensors file of its own; the header says which rows it is. Any number of
processes can read them, one alone included. Nothing is pickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burnish.errors import InputError
from burnish.protocols import ParameterOptimizer

SHARDS = "shards"
"""Folder of a checkpoint: weights and optimizer state in parts, in place of ``optimizer.safetensors``."""
WEIGHTS = "weights"
"""Prefix of the weights' names; the others are those of AdamW's state."""
MOMENTS, STEP = ("exp_avg", "exp_avg_sq"), "step"
STATE = (*MOMENTS, STEP)


def write_shards(folder: Path, optimizer: ParameterOptimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Write this process's part of the parameters and of their optimizer state, while all others write theirs."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors: dict[str, Any] = {}
    for name, parameter in parameters.items():
        tensors[f"{WEIGHTS}/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value if value.shape else value.reshape(1)
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(
    folder: Path, optimizer: ParameterOptimizer, parameters: Mapping[str, nn.Parameter], *, alone: bool
) -> None:
    """Read this process's part in place: all of it if it is ``alone``, and not one of several that read together.

    ``optimizer.safetensors`` of an undivided checkpoint's folder can be read, too: it has no weights. Raises InputError
    if the files belong to other parameters, or a part is missing.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    everything = reader.read_metadata().state_dict_metadata
    saved = {key: one for key, one in everything.items() if key.partition("/")[0] in (WEIGHTS, *STATE)}
    tensors: dict[str, Any] = {}
    for name, parameter in parameters.items():
        like = parameter.detach()
        if any(key.startswith(f"{WEIGHTS}/") for key in saved):
            tensors[f"{WEIGHTS}/{name}"] = like
        if any(f"{key}/{name}" in saved for key in STATE):  # a parameter without a gradient has none
            for key in MOMENTS:
                tensors[f"{key}/{name}"] = torch.zeros_like(like)
            tensors[f"{STEP}/{name}"] = _counter(saved.get(f"{STEP}/{name}"), like)
    _refuse_others(folder, saved, tensors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in a single process")
        load(tensors, storage_reader=reader, no_dist=alone)
    for name, parameter in parameters.items():
        if f"{STEP}/{name}" in tensors:
            state = {key: tensors[f"{key}/{name}"] for key in STATE}
            optimizer.state[parameter] = {**state, STEP: state[STEP].reshape(())}


def _counter(saved: Any, like: Tensor) -> Tensor:
    """Return a tensor for a counter of steps, of the shape in which it was saved."""
    return torch.zeros(() if saved is None else saved.size, dtype=torch.float32, device=like.device)


def _refuse_others(folder: Path, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError if what was saved is not what is to be read: torch casts types, and leaves what is missing."""
    for key in saved.keys() - tensors.keys():
        raise InputError(f"{folder} has '{key}', which this policy does not have: it belongs to another model's run")
    for key, tensor in tensors.items():
        if key not in saved:
            raise InputError(f"{folder}: a part, with '{key}', is missing: the checkpoint is damaged")
        shape, dtype = list(saved[key].size), saved[key].properties.dtype
        if shape != list(tensor.shape) or dtype != tensor.dtype:
            raise InputError(
                f"{folder}: '{key}' is {dtype} {shape}, but {tensor.dtype} {list(tensor.shape)} is needed: a part is "
                "missing, or it belongs to another model's run"
            )
        if sum(chunk.sizes.numel() for chunk in saved[key].chunks) != tensor.numel():
            raise InputError(f"{folder}: a part of '{key}' is missing: the checkpoint is damaged")
