"""Optional packages of some rewards and tasks, imported when used."""

from __future__ import annotations

import importlib
from typing import Any

from burnish.errors import InputError


def needed(module: str, extra: str, what: str) -> Any:
    """Return the imported module. Raises InputError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is broken, not missing, raises its own error.
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise InputError(f"{what} needs a package that is not installed: pip install 'burnish[{extra}]'") from error
