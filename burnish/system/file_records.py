"""Records of files: size, SHA-256 and tensors as they were saved, and how a file differs from its record."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from burnish.system.files import open_regular

HEADER_BYTES = 100 << 20
"""Largest header of a safetensors file, as the format has it."""


class FileRecord(TypedDict, total=False):
    """A file as it was: its bytes and, of a safetensors file, each tensor's type and shape."""

    size: int
    sha256: str
    tensors: dict[str, str]


def file_record(path: Path) -> FileRecord:
    """Return a file's record."""
    with path.open("rb") as file:
        record: FileRecord = {
            "size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()
        }  # fmt: skip
    return record | {"tensors": tensor_shapes(path) or {}} if path.suffix == ".safetensors" else record


def tensor_shapes(path: Path) -> dict[str, str] | None:
    """Return tensor -> type and shape, such as "F32 [49152, 576]", of a safetensors file; None if it is damaged."""
    with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError), open_regular(path) as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if length <= min(HEADER_BYTES, size):
            header = json.loads(file.read(length))
            tensors = {name: one for name, one in header.items() if name != "__metadata__"}
            if 8 + length + max([0, *(one["data_offsets"][1] for one in tensors.values())]) == size:
                return {name: f"{one['dtype']} {one['shape']}" for name, one in tensors.items()}
    return None


def file_damage(path: Path, record: FileRecord) -> str:
    """Return how a file differs from its record, a sentence that begins with the path; "" if it does not."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is not a regular file"
        if status.st_size != record["size"]:
            return f"{path} has {status.st_size:,} bytes, but {record['size']:,} were saved"
        if "tensors" in record and (shapes := _shape_difference(record["tensors"], tensor_shapes(path) or {})):
            return f"{path}: {shapes}"
        same = file_record(path)["sha256"] == record["sha256"]
        return "" if same else f"{path} is not what was saved: its SHA-256 differs"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def _shape_difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    for name in [*then, *(name for name in now if name not in then)]:
        if then.get(name) != now.get(name):
            return f"'{name}' is {now.get(name, 'missing')}, but {then.get(name, 'no such tensor')} was saved"
    return ""
