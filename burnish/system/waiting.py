"""Waiting of torch's threads: spinning, or asleep where other programs need the processor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from burnish.system.clock import busy_cores

VARIABLE = "OMP_WAIT_POLICY"
LIBRARY = "torch._C"
"""Module that is there once torch is loaded; ``torch`` itself may be a postponed import."""
SECONDS = 0.2
"""How long the processor is watched."""
BUSY = 0.5
"""Cores that other programs use from which on sleeping threads are faster than spinning ones."""


def sleep_beside_busy_programs(
    tell: Callable[[str], None], watch: Callable[[float], float | None] = busy_cores
) -> None:
    """Let torch's threads sleep while they wait for each other, if other programs are busy now.

    A thread that spins holds a core that the one it waits for may need. Alone on the machine spinning is faster. It
    has to be decided before torch is loaded, and changes no bit of a result.
    """
    if LIBRARY in sys.modules or VARIABLE in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    with suppress(OSError):
        used = watch(SECONDS)
        if used is not None and used >= BUSY:
            os.environ[VARIABLE] = "passive"
            tell(f"other programs use {used:.1f} cores: this run's threads sleep while they wait ({VARIABLE}=passive)")
