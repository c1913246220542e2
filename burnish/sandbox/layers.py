"""Layers of the sandbox: selection of the strongest that works on this machine, set up once for all programs.

| layer | protection |
|---|---|
| ``namespaces`` | hides outside processes, networks and files (see ``namespaces``), and everything in ``landlock`` |
| ``landlock`` | Landlock and seccomp: outside objects cannot be reached, but some facts about them can be learned |
| ``wasm`` | Python inside WebAssembly, which has no system calls for the outside (see ``wasm``); on any system |
| ``none`` | limits on time, memory and output only: the program can do all that its user can |
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

__all__ = ["STRONG", "TITLES", "Runner", "Unavailable", "check_layer", "close", "get_runner", "unavailable_reason"]


class Runner(Protocol):
    """Runs programs within one layer."""

    @property
    def layer(self) -> str: ...

    def run(self, request: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        """Run one program and wait for its end. Safe to call from several threads at once.

        ``request`` has the arguments of ``program.execute``: ``source``, ``name``, and ``calls`` if it should answer.
        Returns the verdict, and the answers if requested. The program controls these bytes: do not trust them.

        Raises:
            Unavailable: the program could not be started.
        """

    def alive(self) -> bool:
        """Return whether it belongs to this process (not to its parent before a fork) and can start programs."""

    def close(self) -> None:
        """End its processes and remove its folders."""


def check_layer(layer: str) -> str:
    """Return the name of a layer, or "strongest". Raises InputError for any other name."""
    if layer not in CHOICES:
        raise InputError(f"sandbox = {layer!r}: must be one of {', '.join(CHOICES)}")
    return layer


def unavailable_reason(layer: str | None = None, *, numpy: bool = False) -> str | None:
    """Return in one line why this machine does not support a layer (by default, either of those for Linux), or None.

    None means only that the requirements are met: the layer has not been tested yet.
    """
    if layer == WASM:
        if numpy:
            return "the layer wasm has no numpy"
        from burnish.sandbox.wasm import files as wasm_files

        return wasm_files.missing_packages()
    if sys.platform != "linux":
        return f"the sandbox needs Linux with Landlock and seccomp; this is {platform.system() or sys.platform}"
    from burnish.sandbox.linux import kernel, landlock

    if kernel.machine() not in kernel.ARCHITECTURES or struct.calcsize("P") != 8:
        known = " or ".join(kernel.ARCHITECTURES)
        return f"the sandbox supports 64-bit {known} only; this is {kernel.machine()}"
    if not landlock.version():
        return "the sandbox needs a kernel with Landlock (Linux 5.13 or newer, and 'landlock' among its active LSMs)"
    return None


def get_runner(layer: str = STRONGEST, *, numpy: bool = False) -> Runner:
    """Return the runner of a layer. The first call sets it up and attacks it from inside; every attack must fail.

    ``STRONGEST`` never selects ``NONE``. With ``numpy`` its programs can import numpy.

    Raises:
        Unavailable: the layer does not work on this machine.
        InputError: the layer does not exist.
    """
    with _lock:
        if check_layer(layer) != STRONGEST:
            return _get_or_start(layer, numpy)
        reasons: list[str] = []
        for name in STRONG:
            reason, key = unavailable_reason(name, numpy=numpy), (name, numpy)
            if reason is None and (key in _runners or key not in _failures):
                try:
                    return _get_or_start(name, numpy)
                except Unavailable as error:
                    _failures[key] = str(error)
            reasons.append(reason or _failures[key])
        # Two layers may have the same reason.
        raise Unavailable("; ".join(dict.fromkeys(reasons)))


def _get_or_start(layer: str, numpy: bool) -> Runner:
    """Return the runner of one layer. Raises Unavailable, which names the layer if it was started and failed."""
    reason = None if layer == NONE else unavailable_reason(layer, numpy=numpy)
    if reason:
        raise Unavailable(reason)
    key = layer, numpy
    runner = _runners.get(key)
    if runner is not None and runner.alive():
        return runner
    if runner is not None:
        runner.close()
        del _runners[key]
    try:
        _runners[key] = _start_runner(layer, numpy)
    except Unavailable as error:
        raise Unavailable(f"{TITLES[layer]}: {error}") from error
    return _runners[key]


def _start_runner(layer: str, numpy: bool) -> Runner:
    if layer == WASM:
        from burnish.sandbox.wasm.layer import WorkerPool

        return WorkerPool()
    if os.name != "posix":
        raise Unavailable(
            f"the sandbox runs programs on Linux and other POSIX systems only; this is {platform.system()}"
        )
    from burnish.sandbox.linux.forked import ForkServer, Unconfined

    return Unconfined(numpy=numpy) if layer == NONE else ForkServer(layer, numpy=numpy)


def close() -> None:
    """End the processes that start programs and remove their folders. The next program starts them again."""
    with _lock:
        for runner in _runners.values():
            runner.close()
        _runners.clear()
        _failures.clear()


_lock = threading.Lock()
_runners: dict[tuple[str, bool], Runner] = {}
"""Layer and whether it has numpy -> runner."""
_failures: dict[tuple[str, bool], str] = {}
"""The same -> why it failed here. ``STRONGEST`` does not try it again."""


def _after_fork() -> None:
    # In the child, the lock may be held by a thread that was not copied.
    global _lock
    _lock = threading.Lock()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
