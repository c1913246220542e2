"""What the progress observers remember of a run, and what they make of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.reports.wording import number, printable

BARS = "▁▂▃▄▅▆▇█"
_RECENT = 15


def sparkline(values: list[float], width: int = 24) -> str:
    """The last ``width`` values as small bars between their own minimum and maximum."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high == low:
        return BARS[3] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def trend(values: list[float]) -> str:
    """ "↗" or "↘" where the least-squares slope is more than two standard errors from zero, else "→"."""
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
    """What the observers remember of a run."""

    name: str = ""
    steps: int = 0
    done: int = 0
    row: Mapping[str, Any] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)

    @property
    def aim(self) -> tuple[str, str]:
        """What a run is about, in a word and as a metric: its reward, or its loss where it has none."""
        return ("loss", "loss") if "loss" in self.row and "reward/mean" not in self.row else ("reward", "reward/mean")

    def start(self, name: str, steps: int, first_step: int) -> None:
        self.name, self.steps, self.done = printable(name), steps, max(0, first_step - 1)

    def update(self, row: Mapping[str, Any]) -> None:
        self.row = row
        step = number(row.get("step"))
        self.done = self.done + 1 if step is None else int(step)
        if (reward := number(row.get(self.aim[1]))) is not None:
            self.rewards.append(reward)
        phases = [number(row.get(f"time/{phase}")) for phase in ("generate", "score", "update")]
        spent = number(row.get("time/step")) or sum(phase for phase in phases if phase)
        if spent > 0:
            self.seconds.append(spent)
        if (held_out := number(row.get("held_out/reward"))) is not None:
            self.held_out.append((self.done, held_out))

    @property
    def time_left(self) -> float | None:
        """Seconds: the median of recent steps, so that one slow step moves nothing, times the steps to come."""
        if not self.seconds:
            return None
        return statistics.median(self.seconds[-_RECENT:]) * max(0, self.steps - self.done)


def in_bytes(phase: str) -> bool:
    """The protocol carries no unit; a phase that moves files says so by its first word."""
    return phase.lower().startswith(("download", "fetch"))
