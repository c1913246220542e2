"""File-system paths: a user's home folder, and the cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from burnish.errors import InputError


def expanded(path: str | Path) -> Path:
    """Return the path with ``~`` replaced by a home folder. Raises InputError if that user does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"'{path}': there is no home folder of that name: write the whole path") from error


def home() -> Path:
    """Return ``BURNISH_HOME``, the folder for models, data and compiled files, or else ``burnish`` in the cache folder.

    On systems other than Linux, an existing ``~/.cache/burnish`` from an earlier version takes precedence over the
    system's own cache folder. Nothing is created. Raises InputError if the user has no home folder.
    """
    from platformdirs import user_cache_path

    try:
        if chosen := os.environ.get("BURNISH_HOME", ""):
            return Path(chosen).expanduser().absolute()
        folder = user_cache_path("burnish", appauthor=False)
        if sys.platform != "linux" and not folder.is_dir():
            earlier = Path.home() / ".cache" / "burnish"
            return earlier if earlier.is_dir() else folder
        return folder
    except RuntimeError as error:
        raise InputError(f"no home folder ({error}): set BURNISH_HOME to a folder that can be written") from error
