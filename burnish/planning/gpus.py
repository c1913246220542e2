"""Published figures of GPUs: arithmetic, memory, and bandwidth to memory and to other GPUs.

Makers publish the arithmetic of matrix units with 2:4 sparsity; a dense product reaches half of it, which is what
stands here. They publish the bandwidth of links as the sum of both directions; one direction is half of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from burnish.errors import InputError
from burnish.registry import nearest

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class GPU:
    """One kind of GPU.

    Attributes:
        flops: bfloat16 operations per second of dense products, summed in float32; a multiplication and an addition
            count as two.
        memory: bytes, 10^9 for each GB of its name; the driver may show a few percent more.
        bandwidth: bytes per second from its own memory.
        link: bytes per second, in one direction, to other GPUs of the same machine.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    source: str


def _gpu(name: str, teraflops: float, memory: float, bandwidth: float, link: float, source: str) -> GPU:
    """Return a kind of GPU from dense TFLOP/s, GB, GB/s, and the published GB/s of its link in both directions."""
    return GPU(name, teraflops * TERA, memory * GIGA, bandwidth * GIGA, link / 2 * GIGA, source)


_ROWS = (
    _gpu("b200", 2250, 180, 8000, 1800, "NVIDIA HGX B200 data sheet"),
    _gpu("h200", 989.5, 141, 4800, 900, "NVIDIA H200 data sheet, SXM"),
    _gpu("h100", 989.5, 80, 3350, 900, "NVIDIA H100 data sheet, SXM5"),
    _gpu("h100-pcie", 756.5, 80, 2000, 128, "NVIDIA H100 data sheet, PCIe, without NVLink bridges"),
    _gpu("a100", 312, 80, 2039, 600, "NVIDIA A100 data sheet, SXM, 80 GB"),
    _gpu("a100-40gb", 312, 40, 1555, 600, "NVIDIA A100 data sheet, SXM, 40 GB"),
    _gpu("l40s", 362, 48, 864, 64, "NVIDIA L40S data sheet; PCIe 4.0"),
    _gpu("l4", 121, 24, 300, 64, "NVIDIA L4 data sheet; PCIe 4.0"),
    _gpu("rtx4090", 165.2, 24, 1008, 64, "NVIDIA Ada GPU architecture white paper; PCIe 4.0"),
    _gpu("mi300x", 1307.4, 192, 5300, 896, "AMD Instinct MI300X data sheet; seven Infinity Fabric links"),
)
GPUS: dict[str, GPU] = {gpu.name: gpu for gpu in _ROWS}


def get_gpu(name: str) -> GPU:
    """Return the GPU of this name. Raises InputError with the nearest one if it is unknown."""
    if (key := name.strip().lower()) not in GPUS:
        raise InputError(f"--gpu {name}: unknown GPU{nearest(key, GPUS)}; known: {', '.join(GPUS)}")
    return GPUS[key]
