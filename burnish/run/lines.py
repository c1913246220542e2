"""The .jsonl files of a run folder, line by line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.system.files import open_regular

TIMINGS = ("time/", "tokens_per_second", "memory/")
"""Prefixes of the metrics that may differ between two runs of one recipe and seed."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl file, without an incomplete last line. Raises InputError if another is not JSON."""
    if path.exists():
        yield from (row for _, row in whole_lines(path))


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, one at a time."""
    with open_regular(path) as file:
        yield from file


def whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each complete line with its row, one at a time: a long run's samples may not fit into memory."""
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield line, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON ({error}); delete the line") from error


def step_of(path: Path, row: Any) -> float:
    """Return the step of a row. Raises InputError if it has none that is a number."""
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int | float):
        raise InputError(f"{path}: a line is damaged, it has no object with a step: {str(row)[:60]}; delete the line")
    return step


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metrics row without timings: the part that is equal in two runs of one recipe and seed."""
    return {key: value for key, value in row.items() if not key.startswith(TIMINGS)}


def never_by_link(path: str, flags: int) -> int:
    """Open a file as ``open`` does, but not through a link: what is appended to stays in its folder."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
