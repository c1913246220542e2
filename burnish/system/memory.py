"""Memory settings of the process."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """Lets glibc keep large freed blocks for the next step instead of handing them back to the kernel.

    The tensors of a step are allocated and freed alike in every step; mapping and zeroing their pages anew took a tenth
    of a training step's processor time (docs/lessons.md). Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    # Setting the one without the other would switch off what glibc does by itself.
    if mallopt(mmap_threshold, 1 << 26) == 1:
        mallopt(trim_threshold, (1 << 31) - 1)
