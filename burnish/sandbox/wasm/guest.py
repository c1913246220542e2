"""What Python inside WebAssembly executes, after the text of ``program``: it reads its job and does it.

Nothing of burnish can be imported there; ``worker`` passes both texts as code.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.sandbox.program import leave, work

_BESIDE = ("tzdata",)
"""Not of the standard library, and read by it."""


class StandardLibrary:
    """Hides the packages that this Python was built with: a program has the same modules on every layer."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        """The module's place. Raises ModuleNotFoundError where it is a package that was built in."""
        if path is not None or name.startswith("_") or name in sys.stdlib_module_names or name in _BESIDE:
            return None
        # What a program has written itself may be anything.
        places = [place for place in sys.path if not place.endswith(".zip")]
        found = importlib.machinery.PathFinder.find_spec(name, places)
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found


def do_job(home: str, answers: str) -> None:
    """Does the job that lies on standard input, and leaves with the program's exit status.

    Args:
        home: the program's own folder.
        answers: the file for its answers.
    """
    job = json.loads(sys.stdin.buffer.read())
    sys.meta_path.insert(0, StandardLibrary)
    os.chdir(home)
    calls = job.get("calls")
    to = None if calls is None else os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    leave(work(job["source"], job["name"], calls, to))
