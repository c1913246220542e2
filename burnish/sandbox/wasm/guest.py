"""Code that Python inside WebAssembly executes after that of ``program``: reads a job and runs it.

burnish cannot be imported there, so ``layer`` passes both texts as code.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.sandbox.program import execute, exit_process

_DATA_PACKAGES = ("tzdata",)
"""Packages outside the standard library that it reads."""


class StandardLibraryFinder:
    """Import finder that hides packages built into this Python, so programs have the same modules on every layer."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        """Return a module's spec, or None for the next finder. Raises ModuleNotFoundError for a built-in package."""
        if path is not None or name.startswith("_") or name in sys.stdlib_module_names or name in _DATA_PACKAGES:
            return None
        # The program may have written a module of that name itself.
        folders = [folder for folder in sys.path if not folder.endswith(".zip")]
        spec = importlib.machinery.PathFinder.find_spec(name, folders)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


def read_input(size: int) -> bytes:
    """Return that many bytes of standard input and leave the others to the program."""
    data = bytearray()
    while len(data) < size and (chunk := os.read(0, size - len(data))):
        data += chunk
    return bytes(data)


def do_job(home: str, answers: str) -> None:
    """Run a job in the folder ``home``, with answers to a file; exit with the program's status.

    Standard input has the length of the job, the job, and then the program's input: descriptors cannot be replaced here.
    """
    job = json.loads(read_input(int.from_bytes(read_input(4), "big")))
    sys.meta_path.insert(0, StandardLibraryFinder)
    os.chdir(home)
    calls = job.get("calls")
    descriptor = None if calls is None else os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    exit_process(execute(job["source"], job["name"], calls, descriptor))
