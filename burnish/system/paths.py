"""Paths as people write them, and the folder of what is kept."""

from __future__ import annotations

import os
from pathlib import Path

from burnish.errors import InputError


def expanded(path: str | Path) -> Path:
    """The path with ``~`` for a home folder. Raises InputError where it begins with the home of nobody here."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"'{path}': there is no home folder of that name: write the whole path") from error


def home() -> Path:
    """The folder for models, data and what is compiled once: ``BURNISH_HOME``, else ``burnish`` in the user's cache folder.

    The cache folder is ``XDG_CACHE_HOME`` where that is an absolute path (the XDG specification ignores any other),
    else ``~/.cache``. Nothing is created here. Raises InputError where the user has no home folder.
    """
    chosen = os.environ.get("BURNISH_HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        if os.path.isabs(cache):
            return Path(cache) / "burnish"
        return Path.home() / ".cache" / "burnish"
    except RuntimeError as error:
        raise InputError(f"no home folder ({error}): set BURNISH_HOME to a folder that can be written") from error
