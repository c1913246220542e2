"""Names of the files that a piece of code reads, from Python's audit events."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Reads = dict[str, str | None]
"""Absolute path of a file -> None; name of another source, such as a data set of the hub -> its fingerprint."""

_reads: ContextVar[Reads | None] = ContextVar("reads", default=None)
_installed: list[bool] = []


@contextmanager
def recorded_reads(reads: Reads | None) -> Iterator[None]:
    """Add every file that Python code opens for reading in this thread to ``reads``; None records nothing.

    Extension modules that open files themselves, such as pyarrow, are not seen.
    """
    if reads is not None and not _installed:
        _installed.append(True)  # a hook cannot be removed
        sys.addaudithook(_note)
    token = _reads.set(reads)
    try:
        yield
    finally:
        _reads.reset(token)


def record_source(name: str, fingerprint: str) -> None:
    """Add a source that is not a file, if reads are being recorded."""
    if (reads := _reads.get()) is not None:
        reads[name] = fingerprint


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or (reads := _reads.get()) is None:
        return
    path, _, flags = arguments
    read = isinstance(flags, int) and not flags & (os.O_WRONLY | os.O_RDWR)
    if read and isinstance(path, str | bytes | os.PathLike):
        reads[os.path.abspath(os.fsdecode(path))] = None
