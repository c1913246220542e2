"""Seconds of a job by phase, and the processor time that other programs took from it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from burnish.system.machine import cores, peak_memory

SHORTEST = 1.0
"""Seconds. In shorter jobs the time of other programs is not reported: the system counts it in hundredths."""


class Clock:
    """Seconds by phase. Time that is in no lap is the update's, the longest phase.

    Attributes:
        laps: phase -> seconds.
    """

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begin = time.perf_counter()
        self._used = _processor_seconds()

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.laps[name] = self.laps.get(name, 0.0) + time.perf_counter() - begin

    def metrics(self, tokens: int) -> dict[str, float]:
        """Return seconds by phase, tokens per second, and the process's peak memory in MB."""
        total = time.perf_counter() - self._begin
        laps = {**self.laps, "update": total - sum(self.laps.values())}
        return {
            "tokens": tokens,
            "tokens_per_second": tokens / total,
            **{f"time/{name}": seconds for name, seconds in laps.items()},
            "time/step": total,
            **self._others(total),
            "memory/peak": peak_memory() / 1e6,
        }

    def _others(self, total: float) -> dict[str, float]:
        if total < SHORTEST or self._used is None or (used := _processor_seconds(total)) is None:
            return {}
        import torch

        everyone, own = (after - before for after, before in zip(used, self._used, strict=True))
        return {"time/others": taken_by_others(everyone - own, total, cores=cores(), threads=torch.get_num_threads())}


def taken_by_others(used: float, total: float, *, cores: int, threads: int) -> float:
    """Return the processor seconds that others used in ``total`` seconds on cores that this program's threads wanted.

    ``used`` are those that they used in all.
    """
    return max(0.0, used - max(0, cores - threads) * total)


def busy_cores(seconds: float) -> float | None:
    """Return how many cores all programs used while this one slept for some seconds; None where it is not known."""
    before = _processor_seconds()
    begin = time.perf_counter()
    time.sleep(seconds)
    after, elapsed = _processor_seconds(), time.perf_counter() - begin
    return None if before is None or after is None else max(0.0, after[0] - before[0]) / elapsed


def busy(times: Any) -> float:
    """Return the seconds that a core was not idle, or was given to another virtual machine, from psutil's counts."""
    # The time of guests is part of that of users.
    counted = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in counted))


def _processor_seconds(total: float = 0.0) -> tuple[float, float] | None:
    """Return the processor seconds so far of all programs on this process's cores, and of this process.

    With ``total``, children that are alive count with their mean share over the last ``total`` seconds. None where the
    system does not tell.
    """
    import psutil

    try:
        every = psutil.cpu_times(percpu=True)
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
        everyone = sum(busy(every[core]) for core in usable)
        own = sum(os.times()[:4])
        for child in psutil.Process().children(recursive=True) if total else ():
            with suppress(psutil.Error):
                age = max(total, time.time() - child.create_time())
                own += sum(child.cpu_times()[:4]) * total / age
    except (OSError, LookupError, ValueError, NotImplementedError, psutil.Error):
        return None
    return everyone, own
