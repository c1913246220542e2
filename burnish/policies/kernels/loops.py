"""Compiled loops in place of torch's small operations, where they can run.

Problem: between the products of a decoding step lie some sixty small operations per layer. Their calls, and the memory
that each reads and writes, take half as long as the products.

Idea: five loops per layer, compiled by numba, which the threads of torch run. On other devices, for other types, and
without numba, torch's operations compute the same but for rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

FEW_THREADS = 2
"""Threads of torch up to which a loop on one of them pays."""


def compiled_loops(*tensors: Tensor) -> Any:
    """Return the module of the compiled loops, or None if they do not work on these tensors."""
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return None
    return None if torch.is_grad_enabled() else load_loops()


@cache
def load_loops() -> Any:
    """Return the module of the compiled loops, or None where numba cannot be used."""
    try:
        from burnish.policies.kernels import numba_loops
    except (ImportError, RuntimeError):  # not installed, not for this NumPy, or no folder for the machine code
        return None
    # One thread is slower than torch's operations with many.
    return numba_loops if numba_loops.USES_THREADS or torch.get_num_threads() <= FEW_THREADS else None
