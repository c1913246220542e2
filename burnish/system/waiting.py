"""Waiting of torch's threads: spinning, or asleep where other programs need the processor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from burnish.system.clock import busy_cores, taken_by_others
from burnish.system.machine import cores

VARIABLE = "OMP_WAIT_POLICY"
LIBRARY = "torch._C"
"""Module that is there once torch is loaded; ``torch`` itself may be a postponed import."""
SECONDS = 0.2
"""How long the processor is watched."""
BUSY = 0.5
"""Of the cores that the threads want, how many others use from which on sleeping is faster than spinning."""


def sleep_beside_busy_programs(
    tell: Callable[[str], None], threads: int | None = None, watch: Callable[[float], float | None] = busy_cores
) -> None:
    """Let torch's threads sleep while they wait for each other, if other programs use their cores now.

    A thread that spins holds a core that the one it waits for may need. Where there are cores enough spinning is
    faster. It has to be decided before torch is loaded, and changes no bit of a result. ``threads`` is the recipe's.
    """
    if LIBRARY in sys.modules or VARIABLE in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    with suppress(OSError):
        used = watch(SECONDS)
        if used is None:
            return
        taken = taken_by_others(used, 1.0, cores=cores(), threads=threads or _default_threads())
        if taken >= BUSY:
            os.environ[VARIABLE] = "passive"
            tell(f"other programs use {used:.1f} cores: this run's threads sleep while they wait ({VARIABLE}=passive)")


def _default_threads() -> int:
    """Return how many threads torch takes by default: OMP_NUM_THREADS, or one per physical core."""
    import psutil

    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdecimal() else min(cores(), psutil.cpu_count(logical=False) or cores())
