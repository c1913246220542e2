"""Constants of an estimate: their values, and whether each was measured or is assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from burnish.errors import InputError

MILLI, GIGA = 1e-3, 1e9


@dataclass(frozen=True, slots=True)
class Constants:
    """What an estimate multiplies published figures with. Every field is an option of ``burnish plan``.

    Attributes:
        training_utilisation: share of a GPU's arithmetic that passes over many tokens reach.
        bandwidth_utilisation: share of a GPU's memory bandwidth that decoding and the optimizer reach.
        link_utilisation: share of the bandwidth between GPUs that transfers of weights and gradients reach.
        usable_memory: share of a GPU's memory that tensors may fill; the rest is for the driver and gaps.
        network: GB per second that one GPU sends to other machines.
        gpus_per_machine: GPUs of one machine.
        rows: most samples that one sampler decodes at once.
        sampling_launch: least milliseconds of one layer in one decoding step, in which its kernels are started.
        training_launch: least milliseconds of one layer in one microbatch, forward and backward.
    """

    training_utilisation: float = 0.35
    bandwidth_utilisation: float = 0.6
    link_utilisation: float = 0.7
    usable_memory: float = 0.9
    network: float = 50.0
    gpus_per_machine: int = 8
    rows: int = 64
    sampling_launch: float = 1.2
    training_launch: float = 9.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, key = getattr(self, field.name), option(field.name)
            share = field.name.endswith(("_utilisation", "_memory"))
            if not math.isfinite(value) or value < 0 or (value == 0 and not field.name.endswith("_launch")):
                least = "at least 0" if field.name.endswith("_launch") else "above 0"
                raise InputError(f"{key} {value:g}: must be {'above 0 and at most 1' if share else least}")
            if share and value > 1:
                raise InputError(f"{key} {value:g}: is a share, so it must be above 0 and at most 1")


ORIGINS: dict[str, str] = {
    "training_utilisation": "assumed; torchtitan publishes 33 to 39% for Llama 3.1 8B on 8 H100",
    "bandwidth_utilisation": "assumed; on CPUs burnish measured 54 to 65% of its limit",
    "link_utilisation": "assumed",
    "usable_memory": "assumed",
    "network": "assumed: GB/s per GPU, one port of 400 Gb/s each",
    "gpus_per_machine": "assumed",
    "rows": "known: the limit of burnish's engine; vLLM takes more",
    "sampling_launch": "measured: ms, one H100, an earlier burnish without CUDA graphs",
    "training_launch": "measured: ms, one H100, an earlier burnish in float32",
}
"""Where the default of each constant is from; docs/en/planning.md has the details."""


def option(constant: str) -> str:
    """Return the command-line option of a constant."""
    return f"--{constant.replace('_', '-')}"


def origin(constants: Constants, name: str) -> str:
    """Return where the value of a constant is from."""
    return ORIGINS[name] if getattr(constants, name) == getattr(Constants(), name) else f"set by {option(name)}"
