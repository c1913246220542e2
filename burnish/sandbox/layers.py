"""Which walls stand around programs here: the strongest that hold, found out once and kept up for all programs.

| layer | walls |
|---|---|
| ``namespaces`` | no process, network or file of outside is there (see ``namespaces``), and what ``landlock`` has |
| ``landlock`` | Landlock and seccomp: what is outside can be told of, and not be reached |
| ``wasm`` | a Python inside WebAssembly, which has no call for what is outside (see ``wasm``); on any system |
| ``none`` | limits on time, memory and output only: the program can do what its user can |
"""

from __future__ import annotations

import atexit
import os
import platform
import struct
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from burnish.errors import InputError
from burnish.sandbox.names import CHOICES, NONE, STRONG, STRONGEST, TITLES, WASM
from burnish.sandbox.verdict import Limits, Unavailable, Verdict

__all__ = ["STRONG", "TITLES", "Unavailable", "Walls", "checked", "close", "standing", "unavailable"]


class Walls(Protocol):
    """Runs programs within one layer."""

    @property
    def layer(self) -> str: ...

    def run(self, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        """Runs one program and waits for its end; threads may do so at once.

        Args:
            work: the arguments of ``program.work``: ``source``, ``name``, and ``calls`` where it is to answer.
            limits: what it may use.
            answers: whether it is to answer.

        Returns:
            What became of it, and what it answered, to be trusted no more than the program is.

        Raises:
            Unavailable: it could not be started.
        """
        ...

    def alive(self) -> bool:
        """Whether it can start programs for this process, and not for one that this is a copy of."""
        ...

    def close(self) -> None:
        """Ends its processes and removes its folders."""
        ...


def checked(layer: str) -> str:
    """The name of a layer, or of the choice among them. Raises InputError where there is none of that name."""
    if layer not in CHOICES:
        raise InputError(f"sandbox = {layer!r}: must be one of {', '.join(CHOICES)}")
    return layer


def unavailable(layer: str | None = None) -> str | None:
    """Why this machine cannot have a strong layer, in one line; None where it can, as far as can be told beforehand.

    Args:
        layer: which; left out, one of those that are Linux's own walls.
    """
    if layer == WASM:
        from burnish.sandbox.wasm import files as wasm_files

        return wasm_files.missing()
    if sys.platform != "linux":
        return f"the sandbox needs Linux with Landlock and seccomp; this is {platform.system() or sys.platform}"
    # walls is imported for its compiled form to be kept: the child writes none.
    from burnish.sandbox.linux import kernel, landlock

    if kernel.machine() not in kernel.ARCHITECTURES or struct.calcsize("P") != 8:
        known = " or ".join(kernel.ARCHITECTURES)
        return f"the sandbox knows the system calls of 64-bit {known}; this is {kernel.machine()}"
    if not landlock.version():
        return "the sandbox needs a kernel with Landlock (Linux 5.13 or newer, and 'landlock' among its active LSMs)"
    return None


def standing(layer: str = STRONGEST) -> Walls:
    """The walls of a layer, put up and tried by attacks from inside that had to fail, when they are first asked for.

    Args:
        layer: one of ``CHOICES``; ``STRONGEST`` is never ``NONE``.

    Raises:
        Unavailable: no such walls stand here.
        InputError: there is no such layer.
    """
    with _lock:
        if checked(layer) != STRONGEST:
            return _standing(layer)
        reasons: list[str] = []
        for name in STRONG:
            reason = unavailable(name)
            if reason is None and (name in _up or name not in _failed):
                try:
                    return _standing(name)
                except Unavailable as error:
                    _failed[name] = str(error)
            reasons.append(reason or _failed[name])
        # What two layers lack is said once.
        raise Unavailable("; ".join(dict.fromkeys(reasons)))


def _standing(layer: str) -> Walls:
    """The walls of one layer. Raises Unavailable, which names the layer where it was tried and did not hold."""
    reason = None if layer == NONE else unavailable(layer)
    if reason:
        raise Unavailable(reason)
    walls = _up.get(layer)
    if walls is not None and walls.alive():
        return walls
    if walls is not None:
        walls.close()
        del _up[layer]
    try:
        _up[layer] = _put_up(layer)
    except Unavailable as error:
        raise Unavailable(f"{TITLES[layer]}: {error}") from error
    return _up[layer]


def _put_up(layer: str) -> Walls:
    if layer == WASM:
        from burnish.sandbox.wasm.layer import Workers

        return Workers()
    if os.name != "posix":
        raise Unavailable(f"programs can be run on Linux and other POSIX systems only; this is {platform.system()}")
    from burnish.sandbox.linux.forked import NoWalls, Server

    return NoWalls() if layer == NONE else Server(layer)


def close() -> None:
    """Ends the processes that start programs, and removes their folders; the next program starts them anew."""
    with _lock:
        for walls in _up.values():
            walls.close()
        _up.clear()
        _failed.clear()


_lock = threading.Lock()
_up: dict[str, Walls] = {}
_failed: dict[str, str] = {}
"""Layer -> why it does not stand here; not tried again where the strongest is asked for."""


def _after_fork() -> None:
    # The copy's lock may be held by a thread that it does not have.
    global _lock
    _lock = threading.Lock()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
