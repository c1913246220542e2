"""Memory and cores of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
