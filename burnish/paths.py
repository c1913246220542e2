"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from burnish.errors import InputError


def expanded(path: str | Path) -> Path:
    """The path with ``~`` for a home folder. Raises InputError where it begins with the home of nobody here."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"'{path}': there is no home folder of that name: write the whole path") from error
