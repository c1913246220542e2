"""Compiled loops in place of torch's small operations, where they can run.

Problem: between the products of a decoding step lie some sixty small operations per layer. Their calls, and the memory
that each reads and writes, take half as long as the products.

Idea: five loops per layer, compiled by numba, which the threads of torch run. On other devices, for other types, and
without numba, torch's operations compute the same but for rounding. They check no index, so their callers compare the
shapes; tensors that do not fit are left to torch, which says so.
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


def fits_rotation(heads: Tensor, cosines: Tensor, sines: Tensor) -> bool:
    """Return whether heads [T, H, D] and cosines and sines [1, T, D] fit each other."""
    return heads.shape[-1] % 2 == 0 and cosines.shape == sines.shape == (1, heads.shape[0], heads.shape[-1])


def check_loop(fits: bool, *tensors: Tensor) -> None:
    """Raise RuntimeError, as torch does, if tensors do not fit each other or are not float32 on the CPU."""
    if not fits or any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        described = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors)
        raise RuntimeError(f"these tensors do not fit a compiled loop: {described}")
