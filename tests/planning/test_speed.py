"""Seconds of a step's parts: values derived by hand for a tiny model and rates of round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.planning import speed
from burnish.planning.constants import Constants
from burnish.planning.gpus import GPUS
from burnish.planning.shapes import Shape
from burnish.planning.workload import StepWork

TINY = Shape(
    "tiny", layers=2, hidden=4, heads=2, key_value_heads=1, head_size=2, intermediate=8, vocabulary=10, tied=False
)  # fmt: skip
"""388 weights; products with 328 of them, 144 in each layer and 40 in the head; 16 bytes of cache per token."""
WORK = StepWork(prompts=1, samples=2, prompt_tokens=3, answer_tokens=2, longest=2, microbatch=7)
FREE = Constants(sampling_launch=0, training_launch=0)
FAST = 1e30
"""A rate at which a part takes no time."""


def rates(flops: float = FAST, bandwidth: float = FAST, link: float = FAST, network: float = FAST) -> speed.Rates:
    return speed.Rates(flops, bandwidth, link, network, 8)


def test_operations_of_a_pass() -> None:
    found = speed.pass_operations(TINY, WORK, 1, 2)
    # 3 + 2 * 2 tokens through two layers of 144 weights; the head for the 4 sampled tokens.
    assert found.products == 2 * 2 * 144 * 7 + 2 * 40 * 4
    # Pairs: the prompt 3 * 3 / 2; each sample 2 * 3 with the prompt and 2 * 2 / 2 with itself.
    # 4 operations for each pair, layer and number of the two query heads of two numbers.
    assert found.attention == 4 * 2 * 4 * (4.5 + 2 * (6 + 2))


def test_backward_is_twice_forward_and_once_for_frozen_products() -> None:
    operations = speed.Operations(products=100, attention=10)
    assert operations.training(adapter=False, recomputes=False) == 3 * 110
    assert operations.training(adapter=True, recomputes=False) == 2 * 100 + 3 * 10
    assert operations.training(adapter=False, recomputes=True) == 4 * 110


def test_a_prompt_counts_once_for_its_group() -> None:
    one, two = (speed.pass_tokens(replace(WORK, samples=count), 1, count) for count in (1, 2))
    assert (one, two) == (3 + 2, 3 + 2 * 2)


def decode(found: speed.Rates, constants: Constants = FREE, *, rows: int = 2, work: StepWork = WORK) -> float:
    return speed.decoding_seconds(TINY, work, found, constants, prompts=1, samples=2, rows=rows)


def test_decoding_reads_weights_once_per_step_for_all_rows() -> None:
    # Two steps read the weights of all products, 2 bytes each. Two samples of two tokens read 1 + 2 tokens of their own
    # each, and in each of two steps the prompt's three tokens are read once.
    assert decode(rates(bandwidth=1)) == pytest.approx(2 * 2 * 328 + 16 * (2 * 3 + 2 * 3))
    # One row at a time: four steps.
    assert decode(rates(bandwidth=1), rows=1) == pytest.approx(4 * 2 * 328 + 16 * 12)


def test_decoding_takes_as_many_steps_as_the_longest_sample() -> None:
    assert speed.decoding_steps(replace(WORK, longest=50), 2, 2) == 50
    assert speed.decoding_steps(WORK, 5, 2) == 5


def test_decoding_is_bound_by_arithmetic_or_by_starting_kernels_where_those_are_slower() -> None:
    prompt = 2 * 2 * 144 * 3 + 4 * 2 * 4 * 4.5
    sampled = 2 * 2 * 144 * 4 + 2 * 40 * 4 + 4 * 2 * 4 * 16
    assert decode(rates(flops=1)) == prompt + sampled
    # Two steps of two layers of 5 ms.
    assert decode(rates(), Constants(sampling_launch=5)) == pytest.approx(0.02)


def update(found: speed.Rates, *, learners: int = 1, sharded: bool = False, work: StepWork = WORK) -> float:
    return speed.update_seconds(
        TINY, work, found, FREE, prompts=1, samples=2, learners=learners, sharded=sharded
    )  # fmt: skip


def test_update_arithmetic() -> None:
    forward = 2 * 2 * 144 * 7 + 2 * 40 * 4 + 4 * 2 * 4 * 20.5
    assert update(rates(flops=1)) == 3 * forward
    assert update(rates(flops=1), work=replace(WORK, epochs=2, updates=2)) == 2 * 3 * forward
    assert update(rates(flops=1), work=replace(WORK, critic=True)) == 2 * 3 * forward


def test_starting_kernels_bounds_small_microbatches() -> None:
    # Seven tokens in microbatches of four: two, with two layers of 3 ms each.
    found = speed.update_seconds(
        TINY, replace(WORK, microbatch=4), rates(), Constants(training_launch=3), prompts=1, samples=2, learners=1,
        sharded=False,
    )  # fmt: skip
    assert found == pytest.approx(2 * 2 * 0.003)


def test_gradients_are_summed_once_per_update_in_a_ring() -> None:
    # 4 bytes a weight move twice, but for the quarter that is there: 2 * 4 * 388 * 3 / 4.
    assert update(rates(link=1), learners=4) == 2 * 4 * 388 * 3 / 4
    assert update(rates(link=1), learners=1) == pytest.approx(0, abs=1e-9)


def test_a_sharded_model_gathers_twice_and_scatters_once_per_microbatch() -> None:
    assert update(rates(link=1), learners=4, sharded=True) == (2 * 2 + 4) * 388 * 3 / 4
    assert update(rates(link=1), learners=4, sharded=True, work=replace(WORK, microbatch=4)) == 2 * 8 * 388 * 3 / 4


def test_a_pass_without_gradient() -> None:
    def forward(found: speed.Rates, shards: int = 1, constants: Constants = FREE) -> float:
        return speed.forward_seconds(TINY, WORK, found, constants, prompts=1, samples=2, shards=shards)

    assert forward(rates(flops=1)) == 2 * 2 * 144 * 7 + 2 * 40 * 4 + 4 * 2 * 4 * 20.5
    assert forward(rates(link=1), shards=4) == 2 * 388 * 3 / 4
    # A third of a microbatch's forward and backward.
    assert forward(rates(), constants=Constants(training_launch=3)) == pytest.approx(2 * 0.001)


def test_adamw_moves_seven_numbers_per_weight() -> None:
    assert speed.optimizer_seconds(TINY, WORK, rates(bandwidth=1), 1) == 7 * 4 * 388
    assert speed.optimizer_seconds(TINY, WORK, rates(bandwidth=1), 4) == 7 * 388
    assert speed.optimizer_seconds(TINY, replace(WORK, rank=1, updates=3), rates(bandwidth=1), 1) == 3 * 7 * 4 * 128


def sync(found: speed.Rates, *, learners: int = 4, samplers: int = 0, sharded: bool, rank: int | None = None) -> float:
    work = replace(WORK, rank=rank)
    return speed.sync_seconds(TINY, work, found, learners=learners, samplers=samplers, sharded=sharded)


def test_weight_sync() -> None:
    # In place: 4 bytes read and 2 written.
    assert sync(rates(bandwidth=1), sharded=False) == 6 * 388
    assert sync(rates(link=1), sharded=False) == pytest.approx(0, abs=1e-9)
    # Shards: three quarters of the bfloat16 weights come from the others.
    assert sync(rates(link=1), sharded=True) == 2 * 388 * 3 / 4
    # Samplers get all of them, or the adapter in float32.
    assert sync(rates(link=1), samplers=2, sharded=False) == 2 * 388
    assert sync(rates(link=1), samplers=2, sharded=False, rank=1) == 4 * 128


def test_rates_are_published_figures_times_shares() -> None:
    found = speed.Rates.of(GPUS["h100"], Constants())
    assert (found.flops, found.bandwidth) == (pytest.approx(0.35 * 989.5e12), pytest.approx(0.6 * 3.35e12))
    # 900 GB/s in both directions. Beyond a machine, eight ports of 50 GB/s feed it.
    assert found.between(8) == pytest.approx(0.7 * 450e9)
    assert found.between(16) == pytest.approx(0.7 * 400e9)
