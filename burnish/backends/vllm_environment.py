"""The environment in which vLLM samples, and a check of it before a cluster is started."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from burnish.errors import InputError

HOW = "`make vllm` in burnish's repository makes one, .venv-vllm/bin/python; see docs/en/cluster.md"
SAME = ("ray", "burnish")
"""Packages whose objects go between the driver and its samplers."""
PATIENCE = 60.0
"""Seconds for a Python to start and to look for a few packages."""
_QUESTION = f"""
import json, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
found = {{"python": sys.version.split()[0], "vllm": find_spec("vllm") is not None}}
for name in {SAME!r}:
    try:
        found[name] = version(name) if find_spec(name) else None
    except PackageNotFoundError:
        found[name] = "of an unknown version"
print(json.dumps(found))
"""


def check_vllm(python: str | None) -> None:
    """Raise InputError if vLLM cannot sample in this Python, or in the one of another environment on this machine.

    vLLM itself takes ten seconds to import, so it is only looked for.
    """
    if python is None:
        if find_spec("vllm") is None:
            raise InputError(
                "backend.engine = \"vllm\" needs a package that is not installed: pip install 'burnish[ray,vllm]', or set "
                f"backend.python to an environment that has it ({HOW})"
            )
        return
    there = _ask(python)
    if not there["vllm"]:
        raise InputError(f"backend.python = '{python}': vLLM is not installed there: {HOW}")
    here: dict[str, Any] = {"python": sys.version.split()[0], **{name: _version(name) for name in SAME}}
    for name, ours in here.items():
        if there[name] != ours:
            raise InputError(
                f"backend.python = '{python}': it has {name} {there[name] or 'not installed'}, and this program runs with "
                f"{ours}; samplers and driver exchange Python objects, so install the same version there"
            )


def _ask(python: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION], capture_output=True, text=True, timeout=PATIENCE, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no answer in {PATIENCE:g} s"
        raise InputError(f"backend.python = '{python}': cannot be run ({reason}): {HOW}") from error
    try:
        return dict(json.loads(done.stdout))
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["it prints nothing"])[-1]
        raise InputError(f"backend.python = '{python}': is not a Python ({last[:200]}): {HOW}") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version" if find_spec(package) else None
