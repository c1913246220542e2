"""One Python program, run where it can reach nothing: on the strongest layer that stands here, or on the one that is named.

A process of its own behind walls, or a WebAssembly instance of its own, with an empty folder, an almost empty
environment and no open file but its output (see ``layers``). It cannot start processes or threads, so ending it ends all
of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.sandbox import layers
from burnish.sandbox.names import STRONGEST
from burnish.sandbox.verdict import DEFAULT, Limits, Unavailable, Verdict

__all__ = ["DEFAULT", "Limits", "Verdict", "attend", "run"]


def run(source: str, *, limits: Limits = DEFAULT, name: str = "program.py", layer: str = STRONGEST) -> Verdict:
    """Runs a Python program, of the standard library only, and waits for its end. Threads may run programs at once.

    Args:
        source: the program.
        limits: what it may use.
        name: what its tracebacks call it.
        layer: "namespaces", "landlock", "wasm", "strongest" of these, or "none": no walls at all.

    Raises:
        InputError: there is no such layer.
    """
    return attend({"source": source, "name": name}, limits=limits, layer=layer)[0]


def attend(
    work: Mapping[str, Any], *, limits: Limits, answers: bool = False, layer: str = STRONGEST
) -> tuple[Verdict, bytes]:
    """Runs a job of ``program.work`` and returns the verdict, and what it answered if it was to answer."""
    try:
        return layers.standing(layer).run(work, limits, answers)
    except Unavailable as error:
        return Verdict("refused", str(error)), b""
