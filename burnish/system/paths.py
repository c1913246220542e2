"""File-system paths: a user's home folder, and the cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from burnish.errors import InputError


def expanded(path: str | Path) -> Path:
    """Return the path with ``~`` replaced by a home folder.

    Raises:
        InputError: the path begins with the home folder of a user who does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"'{path}': there is no home folder of that name: write the whole path") from error


def home() -> Path:
    """Return the folder for models, data and compiled files: ``BURNISH_HOME``, else ``burnish`` in the user's cache
    folder.

    On Linux the cache folder is ``XDG_CACHE_HOME`` if that is an absolute path (the XDG specification ignores any
    other), else ``~/.cache``. Other systems have folders of their own, such as ``~/Library/Caches``; a
    ``~/.cache/burnish`` from an earlier version is used there as long as it exists. Nothing is created.

    Raises:
        InputError: the user has no home folder.
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
