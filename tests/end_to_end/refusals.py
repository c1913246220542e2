"""The toy recipe, and assertions about refused input, that the tests of errors share."""

from __future__ import annotations

from pathlib import Path

TOY = """
name = "toy"
steps = 4
[policy]
use = "tabular"
[task]
use = "toy"
[sampling]
prompts_per_step = 2
samples_per_prompt = 4
max_new_tokens = 4
[algorithm]
use = "rloo"
[[reward]]
use = "exact"
[evaluation]
resamples = 100
[checkpoint]
every = 2
"""

# Drops the capabilities with which root ignores file permissions.
NO_OVERRIDE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, data)
data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
if libc.capset(header, data):
    raise OSError(ctypes.get_errno(), "capset")
"""


def refused(finished, status: int, *parts: str) -> None:
    """Assert that a command printed the parts in one or two lines on standard error, and nothing on standard output."""
    assert finished.status == status, (finished.status, finished.err)
    assert "Traceback" not in finished.err
    assert 1 <= len(finished.lines) <= 2, finished.err
    assert finished.err.startswith("burnish: ")
    for part in parts:
        assert part in finished.err, (part, finished.err)
    assert finished.out == ""


def contents(folder: Path) -> list[str]:
    """Return the relative paths below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)
