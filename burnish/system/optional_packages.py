"""Packages that only some rewards and tasks need: imported when used, and asked for in one line where missing."""

from __future__ import annotations

import importlib
from typing import Any

from burnish.errors import InputError


def needed(module: str, extra: str, what: str) -> Any:
    """The imported module. Raises InputError with the one command that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A broken package of that name is another matter than a missing one.
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise InputError(f"{what} needs a package that is not installed: pip install 'burnish[{extra}]'") from error
