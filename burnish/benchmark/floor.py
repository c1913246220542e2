"""The machine's own limit for a piece of work: its floating-point operations at the speed of a bare matrix product.

Operations are counted as is usual (Kaplan et al., arXiv 2001.08361, section 2.1): 2 a parameter and token forward, 4 more
backward; with frozen weights, which get no gradient of their own, only 2 more. Each prompt is counted once, however many
samples it has. Attention over the context, the optimizer and drawing tokens are left out, so the limit cannot be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.system.machine import Product, best

LARGE_ROWS = 2048
"""Rows at which training and reading prompts are measured."""
SMALL_ROWS = (32, 64)
"""Rows at which decoding is measured."""
FORWARD, TRAINING, TRAINING_ADAPTER = 2, 6, 4
"""Floating-point operations a parameter and token: forward; forward and backward; the same with frozen weights."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """GFLOP/s of the fastest library at many rows, and by number of rows where they are few."""

    large: float
    small: dict[int, float]

    def at(self, rows: int) -> float:
        """The speed at the measured number of rows nearest to ``rows``."""
        return self.small[min(self.small, key=lambda measured: abs(measured - rows))]


def speeds(found: Sequence[Product], dtype: str = "float32") -> Speeds:
    """What a list of products says: the fastest library at each number of rows."""
    return Speeds(best(found, LARGE_ROWS, dtype).gflops, {rows: best(found, rows, dtype).gflops for rows in SMALL_ROWS})


def sampling_seconds(parameters: int, prompt_tokens: int, tokens: int, completions: int, machine: Speeds) -> float:
    """Reading each prompt once and then one forward pass a sampled token, ``completions`` at once."""
    prompts = FORWARD * parameters * prompt_tokens / machine.large / 1e9
    return prompts + FORWARD * parameters * tokens / machine.at(completions) / 1e9


def training_seconds(
    parameters: int, prompt_tokens: int, tokens: int, machine: Speeds, *, adapter: bool = False
) -> float:
    """Forward and backward over each prompt once and every sampled token."""
    each = TRAINING_ADAPTER if adapter else TRAINING
    return each * parameters * (prompt_tokens + tokens) / machine.large / 1e9


def tokens_per_second(parameters: int, gflops: float, each: int = FORWARD) -> float:
    """Tokens a second that a product speed allows."""
    return gflops * 1e9 / (each * parameters)
