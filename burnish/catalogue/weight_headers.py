"""Headers of safetensors files: what they say of each weight, held against the size of the file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.system.confined import leads_inside

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 100_000_000
"""Bytes of a header; the limit of the format's own library."""
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Size of a number of each type."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight as a file's header describes it.

    Attributes:
        dtype: type of its numbers, in the format's spelling, such as "BF16".
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredWeight]:
    """Return what a safetensors file has, by name.

    Raises:
        InputError: it is no safetensors file, a weight has no such type, shape or place, or bytes are missing.
    """
    size = path.stat().st_size
    header: Any = None
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length <= min(size - 8, MOST_HEADER):
            try:
                header = json.loads(file.read(length))
            except (ValueError, RecursionError):
                header = None
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a complete safetensors file ({size:,} bytes): copy or download it again")
    facts = header.pop("__metadata__", {})
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise InputError(f"{path}: __metadata__ in its header is not a table of texts: copy or download it again")
    weights, end = {}, 0
    for name, entry in header.items():
        weights[name], last = _weight(path, name, entry)
        end = max(end, last)
    if size != 8 + length + end:
        raise InputError(
            f"{path} has {size:,} bytes but its header needs {8 + length + end:,}: copy or download it again"
        )
    return weights


def _weight(path: Path, name: str, entry: Any) -> tuple[StoredWeight, int]:
    """Return a weight and the position of its last byte."""
    if not isinstance(entry, Mapping):
        raise InputError(
            f"{path} is not a complete safetensors file: the weight '{name:.80}' has no entry in its header"
        )
    shape: Any = entry.get("shape")
    place: Any = entry.get("data_offsets")
    for key, value in (("shape", shape), ("data_offsets", place)):
        if not (isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 60 for one in value)):
            raise InputError(f"{path}: the weight '{name:.80}' has {key} = {value!r:.60}: copy or download it again")
    if entry.get("dtype") not in BITS:
        raise InputError(
            f"{path}: the weight '{name:.80}' has dtype = {entry.get('dtype')!r:.40}, which does not exist: copy or "
            "download it again"
        )
    weight = StoredWeight(str(entry["dtype"]), tuple(shape))
    needed = (weight.count * BITS[weight.dtype] + 7) // 8
    if len(place) != 2 or place[1] - place[0] != needed:
        raise InputError(
            f"{path}: the weight '{name:.80}' of shape {shape!s:.60} and dtype {weight.dtype} needs {needed:,} bytes, and "
            f"data_offsets = {place!s:.60}: copy or download it again"
        )
    return weight, place[1]


def shard_names(index: Path, described: Mapping[str, Any]) -> list[str]:
    """Return the names of the files of an index. Raises InputError if one is no safetensors file in its folder."""
    weight_map = described.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: copy it again from the original model")
    for weight, name in weight_map.items():
        if not isinstance(name, str) or not leads_inside(name) or not name.endswith(".safetensors"):
            raise InputError(
                f"{index}: weight_map['{weight:.80}'] = {name!r:.80} is not a safetensors file in its folder: copy it again "
                "from the original model"
            )
    return sorted(set(weight_map.values()))
