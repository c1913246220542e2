"""Lower bound of a job's time on this machine: its floating-point operations at the speed of a bare matrix product.

Operations are counted as usual (Kaplan et al., arXiv 2001.08361, section 2.1): 2 per parameter and token forward, 4
more backward, or 2 more with frozen weights. Each prompt counts once, whatever the number of samples. Attention over
the context, the optimizer and drawing tokens are not counted, so that the bound cannot be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.system.machine import Product, best

LARGE_ROWS = 2048
"""Number of rows at which training and reading prompts are measured."""
SMALL_ROWS = (32, 64)
"""Numbers of rows at which decoding is measured."""
FORWARD, TRAINING, TRAINING_ADAPTER = 2, 6, 4
"""Floating-point operations per parameter and token: forward; forward and backward; the same with frozen weights."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """GFLOP/s of the fastest library: ``large`` at many rows, ``small`` by number of rows."""

    large: float
    small: dict[int, float]

    def at(self, rows: int) -> float:
        """Return the speed at the measured number of rows nearest to ``rows``."""
        return self.small[min(self.small, key=lambda measured: abs(measured - rows))]


def speeds(measured: Sequence[Product], dtype: str = "float32") -> Speeds:
    """Return the speed of the fastest library at each number of rows."""
    small = {rows: best(measured, rows, dtype).gflops for rows in SMALL_ROWS}
    return Speeds(best(measured, LARGE_ROWS, dtype).gflops, small)


def sampling_seconds(parameters: int, prompt_tokens: int, tokens: int, completions: int, machine: Speeds) -> float:
    """Return the seconds of reading each prompt once and a forward pass per sampled token, ``completions`` at once."""
    prompts = FORWARD * parameters * prompt_tokens / machine.large / 1e9
    return prompts + FORWARD * parameters * tokens / machine.at(completions) / 1e9


def training_seconds(
    parameters: int, prompt_tokens: int, tokens: int, machine: Speeds, *, adapter: bool = False
) -> float:
    """Return the seconds of forward and backward over each prompt once and every sampled token."""
    each = TRAINING_ADAPTER if adapter else TRAINING
    return each * parameters * (prompt_tokens + tokens) / machine.large / 1e9


def tokens_per_second(parameters: int, gflops: float, each: int = FORWARD) -> float:
    """Return the tokens per second that a product speed allows."""
    return gflops * 1e9 / (each * parameters)
