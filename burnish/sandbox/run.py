"""Runs one untrusted Python program in the sandbox.

The program gets its own confined process or WebAssembly instance, an empty folder, an almost empty environment and no
open files but its output (see ``layers``). It cannot start processes or threads, so nothing outlives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.sandbox import layers
from burnish.sandbox.names import STRONGEST
from burnish.sandbox.verdict import DEFAULT, Limits, Unavailable, Verdict

__all__ = ["DEFAULT", "Limits", "Verdict", "run", "run_request"]


def run(source: str, *, limits: Limits = DEFAULT, name: str = "program.py", layer: str = STRONGEST) -> Verdict:
    """Run a Python program that needs only the standard library, and wait for its end. Threads may call this at once.

    Args:
        name: its file name in tracebacks.
        layer: "namespaces", "landlock", "wasm", "strongest" of these, or "none": limits only, no confinement.

    Raises:
        InputError: the layer does not exist.
    """
    return run_request({"source": source, "name": name}, limits=limits, layer=layer)[0]


def run_request(
    request: Mapping[str, Any], *, limits: Limits, answers: bool = False, layer: str = STRONGEST
) -> tuple[Verdict, bytes]:
    """Run ``program.execute`` with the arguments in a request; return the verdict, and the answers if requested."""
    try:
        return layers.get_runner(layer, numpy=limits.numpy).run(request, limits, answers)
    except Unavailable as error:
        return Verdict("refused", str(error)), b""
