"""The state of a run that the progress observers share, and figures derived from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.reports.wording import finite, printable

BARS = "▁▂▃▄▅▆▇█"
NEIGHBOUR = 0.2
"""Cores that other programs take from a step before its line says so."""


def sparkline(values: list[float], width: int = 24) -> str:
    """Draw the last ``width`` values as bars between their minimum and maximum."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high == low:
        return BARS[3] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def trend(values: list[float]) -> str:
    """Return "↗" or "↘" if the least-squares slope is more than two standard errors from zero, else "→"."""
    n = len(values)
    if n < 4:
        return "→"
    middle, mean = (n - 1) / 2, statistics.fmean(values)
    spread = sum((x - middle) ** 2 for x in range(n))
    slope = sum((x - middle) * (value - mean) for x, value in enumerate(values)) / spread
    noise = sum((value - mean - slope * (x - middle)) ** 2 for x, value in enumerate(values)) / (n - 2)
    if abs(slope) <= 2 * (noise / spread) ** 0.5:
        return "→"
    return "↗" if slope > 0 else "↘"


@dataclass
class RunState:
    """Progress of a run: its steps and its objective over time."""

    name: str = ""
    steps: int = 0
    done: int = 0
    row: Mapping[str, Any] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    """The objective at each step."""

    @property
    def objective(self) -> tuple[str, str]:
        """Label and metric of what the run optimises: the reward, or the loss if it has no reward."""
        return ("loss", "loss") if "loss" in self.row and "reward/mean" not in self.row else ("reward", "reward/mean")

    def start(self, name: str, steps: int, first_step: int) -> None:
        """Begin or resume a run at ``first_step``."""
        self.name, self.steps, self.done = printable(name), steps, max(0, first_step - 1)

    def update(self, row: Mapping[str, Any]) -> None:
        """Record the metrics of a finished step."""
        self.row = row
        step = finite(row.get("step"))
        self.done = self.done + 1 if step is None else int(step)
        if (reward := finite(row.get(self.objective[1]))) is not None:
            self.rewards.append(reward)

    @property
    def time_left(self) -> float | None:
        """Seconds left after the latest step, the last measurement included."""
        return finite(self.row.get("time/left"))

    @property
    def others(self) -> str:
        """How many cores other programs took from the latest step, in words; empty if they cost little time."""
        taken, seconds = finite(self.row.get("time/others")), finite(self.row.get("time/step"))
        if not (taken and seconds) or taken < NEIGHBOUR * seconds:
            return ""
        return f"other programs took {taken / seconds:.1f} cores"


def in_bytes(phase: str) -> bool:
    """Return whether a phase counts bytes; the protocol has no unit, so its first word decides."""
    return phase.lower().startswith(("download", "fetch"))
