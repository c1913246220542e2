"""The processor time that other programs take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from burnish.system import clock
from burnish.system.clock import Clock, busy, taken_by_others


def test_a_core_is_busy_with_all_but_waiting() -> None:
    linux = SimpleNamespace(
        user=8.0,
        nice=4.0,
        system=2.0,
        idle=100.0,
        iowait=50.0,
        irq=1.0,
        softirq=0.5,
        steal=0.25,
        guest=8.0,
        guest_nice=4.0,
    )
    assert busy(linux) == 15.75
    assert busy(SimpleNamespace(user=3.0, system=2.0, idle=9.0, interrupt=1.0, dpc=1.0)) == 5.0


@pytest.mark.parametrize(
    ("used", "cores", "threads", "taken"),
    [
        (10.0, 2, 2, 10.0),
        (10.0, 2, 1, 0.0),  # the other core was free
        (15.0, 2, 1, 5.0),
        (10.0, 2, 8, 10.0),
        (-0.3, 2, 2, 0.0),  # the system counts in hundredths of a second
    ],
)
def test_others_take_what_the_threads_leave_no_room_for(used: float, cores: int, threads: int, taken: float) -> None:
    assert taken_by_others(used, 10.0, cores=cores, threads=threads) == taken


def test_a_long_step_reports_the_time_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100.0, 40.0), (107.0, 43.0), (200.0, 50.0)])
    times = iter([1000.0, 1010.0, 2000.0, 2000.5])
    monkeypatch.setattr(clock, "_processor_seconds", lambda total=0.0: next(readings))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(clock, "cores", lambda: 1)
    row = Clock().metrics(tokens=20)
    assert row["time/step"] == 10.0 and row["time/others"] == 4.0
    assert "time/others" not in Clock().metrics(tokens=20), "shorter than the system's counts are worth"
