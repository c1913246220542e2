"""Optional packages of some rewards and tasks, imported when used."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
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


def installed_path(package: str, path: str, extra: str, what: str) -> Path:
    """Return a path inside an installed package, without running its code. Raises InputError if it is missing."""
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise InputError(f"{what} needs a package that is not installed: pip install 'burnish[{extra}]'") from error
