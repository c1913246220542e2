"""The machine: cores, memory, load, and the speed of its matrix products.

Speeds are those of a language model's products: a stack of weights, each used once before the first is used again, so
that small batches pay for reading them from memory, as decoding does.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SMOLLM2_SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
"""Outputs and inputs of the linear layers of a block of SmolLM2-135M (9 query heads, 3 of keys and values)."""
NVIDIA = Path("/proc/driver/nvidia/gpus")
LONGEST_PASS = 30.0
"""Seconds. A whole measurement makes six passes."""
LEAST_MEMORY, LEAST_SHARE = 8 << 30, 0.0125
"""Bytes of memory of a machine that has none to spare, and the share of it that may be used all the same."""
WEIGHT_BYTES = 256 << 20
"""Minimum size of the weights that a pass reads: more than any processor caches."""


@dataclass(frozen=True, slots=True)
class Product:
    """The speed of matrix products.

    Attributes:
        library: "linear" (torch's default for the dtype), or "onednn" and "mkl" with weights packed beforehand.
        rows: number of tokens multiplied at once.
        gflops: 10^9 floating-point operations per second; a multiplication and an addition count as two.
    """

    library: str
    dtype: str
    rows: int
    gflops: float


def products(
    rows: Sequence[int], *, dtypes: Sequence[str] = ("float32",), shapes: Sequence[tuple[int, int]] = SMOLLM2_SHAPES,
    weight_bytes: int = WEIGHT_BYTES, passes: int = 5, names: Sequence[str] = ("linear", "onednn", "mkl"),
) -> list[Product]:  # fmt: skip
    """Measure the libraries of this build of torch at each number of rows and dtype: the median of the timed passes.

    Where a pass would take longer than ``LONGEST_PASS``, as in a dtype that the processor lacks, one product is measured.
    """
    import torch

    measured = []
    for dtype in dtypes:
        kind: torch.dtype = getattr(torch, dtype)
        size = kind.itemsize * sum(outputs * inputs for outputs, inputs in shapes)
        stack = [torch.randn(shape).to(kind) for _ in range(max(1, -(-weight_bytes // size))) for shape in shapes]
        for count in rows:
            inputs = {width: torch.randn(count, width).to(kind) for width in {shape[1] for shape in shapes}}
            work = 2 * count * sum(weight.numel() for weight in stack)
            for library, prepare in libraries(dtype).items():
                if library not in names:
                    continue
                with suppress(RuntimeError, NotImplementedError, AttributeError):
                    calls = [(prepare(weight, count), inputs[weight.shape[1]]) for weight in stack]
                    seconds = statistics.median(_passes(calls, passes))
                    measured.append(Product(library, dtype, count, work / seconds / 1e9))
    return measured


def _passes(calls: Sequence[tuple[Callable[[Tensor], Tensor], Tensor]], count: int) -> list[float]:
    """Return the seconds of each pass over all calls, without the first pass; of a slow one, an estimate."""
    import torch

    times: list[float] = []
    with torch.inference_mode():
        begin = time.perf_counter()
        calls[0][0](calls[0][1])
        if (estimate := (time.perf_counter() - begin) * len(calls)) > LONGEST_PASS:
            return [estimate]
        for _ in range(count + 1):
            begin = time.perf_counter()
            for call, rows in calls:
                call(rows)
            times.append(time.perf_counter() - begin)
    return times[1:]


def libraries(dtype: str) -> Mapping[str, Callable[[Tensor, int], Callable[[Tensor], Tensor]]]:
    """Return name -> function that packs a weight [out, in] for a number of rows and returns the product with it."""
    import torch

    ops: Any = torch.ops

    def linear(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        return lambda inputs: torch.nn.functional.linear(inputs, weight)

    def onednn(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        packed = ops.mkldnn._reorder_linear_weight(weight, rows)
        multiply = ops.mkldnn._linear_pointwise
        return lambda inputs: multiply(inputs, packed, None, "none", [], "")

    def mkl(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        packed = ops.mkl._mkl_reorder_linear_weight(weight, rows)
        multiply = ops.mkl._mkl_linear
        return lambda inputs: multiply(inputs, packed, weight, None, rows)

    common = {"linear": linear, "onednn": onednn}
    return {**common, "mkl": mkl} if dtype == "float32" else common


def best(measured: Sequence[Product], rows: int, dtype: str = "float32") -> Product:
    """Return the fastest product at this number of rows and dtype. Raises ValueError if none was measured."""
    return max((one for one in measured if (one.rows, one.dtype) == (rows, dtype)), key=lambda one: one.gflops)


def spin(seconds: float = 0.5, workers: int | None = None) -> float:
    """Return the share of processor time that a short busy loop on every core got: near 1 on a quiet machine."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    count = workers or cores()
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        shares = list(pool.map(_busy, [seconds] * count))
    return sum(shares) / count


def _busy(seconds: float) -> float:
    begin, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        pass
    return min(1.0, (time.process_time() - used) / (time.perf_counter() - begin))


def load_average() -> float | None:
    """Return the mean number of processes that wanted a core in the last minute, or None if it is not known."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the names of the GPUs that the drivers of this machine list, without loading torch."""
    names = []
    for path in sorted(NVIDIA.glob("*/information")):
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names or (["AMD, with the driver of ROCm"] if Path("/dev/kfd").exists() else [])


def memory() -> tuple[int, int] | None:
    """Return the bytes of memory in all and available to a new process, or None if the system does not tell."""
    import psutil

    try:
        sizes = psutil.virtual_memory()
    except (OSError, LookupError, ValueError, NotImplementedError):
        return None
    return int(sizes.total), int(sizes.available)


def spare_bytes(total: int) -> int:
    """Return the bytes that may be used beyond need: a quarter of what is beyond 8 GB, at least ``LEAST_SHARE``."""
    return int(max(total * LEAST_SHARE, (total - LEAST_MEMORY) / 4))


def spare_memory_share() -> float:
    """Return the share of the memory that a process that starts now may use beyond its needs.

    It is that of ``spare_bytes``, halved until it is at most a quarter of what is free.
    """
    total, available = memory() or (LEAST_MEMORY, LEAST_MEMORY)
    share = spare_bytes(total) / total
    while share > LEAST_SHARE and share * total > available / 4:
        share /= 2
    return round(max(share, LEAST_SHARE), 4)


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda" for ``policy.device``. Raises InputError where there is no GPU that torch can use."""
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError(
            f'policy.device = "cuda": torch {torch.__version__} sees no GPU on this machine; set it to "auto" or "cpu", '
            "or install a CUDA build of torch"
        )
    return ("cuda" if available else "cpu") if device == "auto" else device


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step; other C libraries are left alone.

    Mapping and zeroing the blocks again would cost a tenth of a training step (docs/lessons.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    # Setting only one of them would switch off glibc's own adaptation.
    if mallopt(mmap_threshold, 1 << 26) == 1:
        mallopt(trim_threshold, (1 << 31) - 1)


def peak_memory() -> int:
    """Return the largest resident set this process has had, in bytes."""
    # psutil has the peak on Windows only. Linux's own counter starts anew with each program; that of getrusage counts
    # from the fork, so that a small program started by a large one seems as large as its parent.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        import psutil

        windows: Any = psutil.Process().memory_info()
        return int(windows.peak_wset)
    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processor() -> str:
    """Return the model name of the processor."""
    import platform

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
