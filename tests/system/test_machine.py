"""Memory and cores of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.system import machine
from burnish.system.machine import cores, memory, peak_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_what_the_kernel_reports() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    sizes = memory()
    assert sizes is not None and sizes[0] == total and 0 < sizes[1] <= total


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_that_of_this_program_alone() -> None:
    # The parent holds 200 MB more than the child; getrusage in the child would count the parent's at the fork.
    ballast = bytearray(os.urandom(1 << 20)) * 200
    code = "from burnish.system.machine import peak_memory; print(peak_memory())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 1 << 22 < child < len(ballast) < peak_memory()


def test_cores_are_those_of_this_process() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


GB = 1 << 30


@pytest.mark.parametrize(
    "total, available, share",
    [
        (8 * GB, 7 * GB, 0.0125), (4 * GB, 4 * GB, 0.0125),  # nothing to spare
        (24 * GB, 20 * GB, 1 / 6),  # a quarter of 16
        (24 * GB, 15 * GB, 1 / 12), (24 * GB, 4 * GB, 1 / 24), (24 * GB, GB // 8, 0.0125),
    ],
)  # fmt: skip
def test_spare_memory_is_what_is_beyond_8_gb_and_free(total, available, share, monkeypatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (total, available))
    assert machine.spare_memory_share() == pytest.approx(share, abs=5e-5)


def test_spare_memory_of_a_system_that_does_not_tell(monkeypatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: None)
    assert machine.spare_memory_share() == machine.LEAST_SHARE
