"""Estimates beside what others have published, and beside what burnish measured; docs/en/planning.md shows the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from burnish.planning import memory, speed
from burnish.planning.constants import Constants
from burnish.planning.gpus import GPUS
from burnish.planning.shapes import PUBLISHED
from burnish.planning.workload import StepWork

PAGES = [Path(__file__).parents[2] / "docs" / language / "planning.md" for language in ("en", "zh")]
STEADY = Constants(sampling_launch=0, training_launch=0)
"""The peers start kernels by CUDA graphs or compile them."""


def shown(page: Path, row: str) -> list[float]:
    """Return the numbers of the last three cells of a table's row: estimate, published or measured, their ratio."""
    (line,) = [one for one in page.read_text(encoding="utf-8").splitlines() if one.startswith(f"| {row} |")]
    return [float(re.sub(r"[^\d.]", "", cell)) for cell in line.strip("|").split("|")[-3:]]


def check(row: str, estimate: float, published: float) -> None:
    """Hold the pages' row against the formulas."""
    for page in PAGES:
        said, theirs, ratio = shown(page, row)
        assert theirs == published
        assert said == pytest.approx(estimate, rel=0.01) and ratio == pytest.approx(estimate / published, rel=0.02)


def state(gpus: int) -> float:
    """Return the estimated GiB of Llama 3.1 8B's weights, gradients and moments on each of several learners."""
    shape, work = PUBLISHED["llama-3.1-8b"], StepWork(2, 1, 0, 8192, 8192, 2 * 8192)
    held = memory.total(memory.trained_state(shape, work, gpus)) + memory.gradient_bytes(shape, work, gpus)
    return held / 2**30


def test_torchtitans_llama_3_8b_on_8_gpus() -> None:
    shape, work = PUBLISHED["llama-3.1-8b"], StepWork(2, 1, 0, 8192, 8192, 2 * 8192)
    rates = speed.Rates.of(GPUS["h100"], STEADY)
    update = speed.update_seconds(shape, work, rates, STEADY, prompts=0, samples=2, learners=8, sharded=True)
    tokens = 2 * 8192 / (update + speed.optimizer_seconds(shape, work, rates, 8))
    check("`titan` tokens/s per GPU", tokens, 6667)
    # What does not depend on activations: 77.0 GiB on 8 GPUs, 62.0 on 128.
    check("`titan` state, GiB per GPU", state(8) - state(128), 15.0)


def test_openrlhfs_llama_2_7b() -> None:
    shape, work = PUBLISHED["llama-2-7b"], StepWork(1024, 1, 1024, 1024, 1024, 8 * 2048, updates=8)
    rates = speed.Rates.of(GPUS["a100"], STEADY)
    free = 0.9 * GPUS["a100"].memory - memory.narrow_copy(shape)
    rows = memory.largest_cache_rows(shape, work, free, 256)
    sampling = speed.decoding_seconds(shape, work, rates, STEADY, prompts=512, samples=512, rows=rows)
    update = speed.update_seconds(shape, work, rates, STEADY, prompts=512, samples=512, learners=2, sharded=True)
    check("`openrlhf` generation, s", sampling, 481.86)
    check("`openrlhf` training, s", update + speed.optimizer_seconds(shape, work, rates, 2), 403.29)


@pytest.mark.parametrize(
    ("name", "prompts", "samples", "prompt", "answer", "rank", "sampling", "update"),
    [
        ("short", 8, 8, 39, 64, None, 5.3, 12.3),
        ("lora", 8, 8, 39, 64, 16, 5.6, 10.5),
        ("long", 4, 16, 600, 32, None, 5.3, 15.2),
    ],
)
def test_the_measured_steps_on_a_cpu(
    name: str, prompts: int, samples: int, prompt: int, answer: int, rank: int | None, sampling: float, update: float
) -> None:
    # docs/en/performance.md: products of 477 GFLOP/s at many rows and 335 at 64, all 64 samples in flight.
    shape, work = PUBLISHED["smollm2-135m"], StepWork(prompts, samples, prompt, answer, answer, 1152, rank=rank)
    whole = speed.pass_operations(shape, work, prompts, prompts * samples)
    read, drawn = (speed.pass_operations(shape, work, *some).forward for some in ((prompts, 0), (0, prompts * samples)))
    check(f"`{name}` sampling, s", read / 477e9 + drawn / 335e9, sampling)
    check(f"`{name}` update, s", whole.training(adapter=rank is not None, recomputes=False) / 477e9, update)
