"""Whether the machine is quiet enough for a time to mean something."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.system.machine import cores, load_average, spin

MOST_LOAD = 0.3
"""Of each core, in the last minute, by others."""
LEAST_SHARE = 0.97
"""Of the processor time that a busy loop on every core asks for."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """What was found before a measurement.

    Attributes:
        load: the load average of the last minute; None where the system does not say.
        share: of the time that a busy loop on every core asked for, what it got.
        cores: that this process may use.
    """

    load: float | None
    share: float
    cores: int

    @property
    def complaint(self) -> str | None:
        """Why a time taken now would not mean much; None on a quiet machine.

        The load average looks a minute back, so a process that has just ended is still in it; the busy loop knows now.
        """
        if self.share < LEAST_SHARE:
            return f"a busy loop on {self.cores} cores got {self.share:.0%} of the time it asked for"
        if self.load is not None and self.load > MOST_LOAD * self.cores:
            return f"the load average of the last minute is {self.load:.2f} on {self.cores} cores"
        return None


def look() -> Quiet:
    """Looks at the load first and spins then: the spinning would count."""
    load = load_average()
    return Quiet(load, spin(), cores())
