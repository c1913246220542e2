"""Check that the machine is quiet enough for meaningful timings."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.system.machine import cores, load_average, spin

MOST_LOAD = 0.3
"""Largest load average per core of the last minute."""
LEAST_SHARE = 0.97
"""Smallest share of processor time that a busy loop on every core must get."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """State of the machine: the load average of the last minute, if the system has one, the share of processor time that a
    busy loop on every core got, and the cores that this process may use."""

    load: float | None
    share: float
    cores: int

    @property
    def complaint(self) -> str | None:
        """Reason why timings taken now would be unreliable; None on a quiet machine."""
        if self.share < LEAST_SHARE:
            return f"a busy loop on {self.cores} cores got {self.share:.0%} of the time it asked for"
        if self.load is not None and self.load > MOST_LOAD * self.cores:
            return f"the load average of the last minute is {self.load:.2f} on {self.cores} cores"
        return None


def look() -> Quiet:
    """Measure the load and then spin, since spinning would add to the load."""
    load = load_average()
    return Quiet(load, spin(), cores())
