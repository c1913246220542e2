"""Memory settings of the process."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step, since mapping and zeroing them again costs a tenth of the step.

    Does nothing with other C libraries. See docs/lessons.md.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    # Setting only one of them would switch off glibc's own adaptation.
    if mallopt(mmap_threshold, 1 << 26) == 1:
        mallopt(trim_threshold, (1 << 31) - 1)
