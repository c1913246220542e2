"""Placement: what fits where, sums, and more GPUs that are never slower."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.planning import memory, speed
from burnish.planning.constants import Constants
from burnish.planning.gpus import GPUS
from burnish.planning.placement import Cluster, Placement, best_placement, outcome, placements
from burnish.planning.shapes import PUBLISHED
from burnish.planning.workload import StepWork

WORK = StepWork(32, 8, 300, 400, 1024, 2048, reference="algorithm.kl.coefficient = 0.02")
SEVEN = PUBLISHED["qwen2.5-7b"]
VLLM = Constants(rows=256, sampling_launch=0, training_launch=0)


def cluster(gpus: int, gpu: str = "h100", constants: Constants = VLLM, max_staleness: int = 0) -> Cluster:
    return Cluster(GPUS[gpu], gpus, constants, max_staleness)


def test_the_ways_to_use_two_gpus() -> None:
    assert set(placements(cluster(2))) == {
        Placement(0, 1, False), Placement(0, 2, False), Placement(0, 2, True), Placement(1, 1, False),
    }  # fmt: skip


def test_beyond_a_machine_roles_have_whole_machines() -> None:
    learners = {one.learners for one in placements(cluster(24)) if not one.samplers}
    assert learners == {*range(1, 9), 16, 24}


def test_a_larger_cluster_can_do_what_a_smaller_one_can() -> None:
    for gpus in range(1, 34):
        assert set(placements(cluster(gpus))) <= set(placements(cluster(gpus + 1)))


@pytest.mark.parametrize("constants", [Constants(), VLLM], ids=["engine", "vllm"])
@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-7b", "llama-3.1-70b"])
@pytest.mark.parametrize("staleness", [0, 1])
def test_more_gpus_are_never_slower(model: str, staleness: int, constants: Constants) -> None:
    best = float("inf")
    for gpus in (1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 32, 64):
        found = best_placement(PUBLISHED[model], WORK, cluster(gpus, "b200", constants, staleness))
        if found.fits:
            assert found.step <= best
            best = found.step
        else:
            assert best == float("inf"), "what fits a smaller cluster fits a larger one"
    assert best < float("inf")


def test_a_step_is_the_sum_of_its_parts() -> None:
    found = best_placement(SEVEN, WORK, cluster(8))
    assert list(found.seconds) == ["sampling", "reference", "update", "optimizer", "weight sync"]
    assert found.step == pytest.approx(sum(found.seconds.values()))
    for parts in found.phases.values():
        assert memory.total(parts) == sum(parts.values()) <= found.usable


def test_the_passes_that_a_recipe_does_not_need_are_left_out() -> None:
    plain = best_placement(SEVEN, replace(WORK, reference=""), cluster(8))
    assert "reference" not in plain.seconds and "reference" not in plain.phases
    ppo = best_placement(SEVEN, replace(WORK, critic=True, updates=4, epochs=4), cluster(16))
    # Old log-probabilities and values: two passes.
    rates = speed.Rates.of(GPUS["h100"], VLLM)
    prompts, samples = WORK.share(ppo.placement.learners)
    one = speed.forward_seconds(
        SEVEN, WORK, rates, VLLM, prompts=prompts, samples=samples, shards=ppo.placement.shards
    )  # fmt: skip
    assert ppo.seconds["old log-probabilities, values"] == pytest.approx(2 * one)


def test_seven_billion_weights_need_their_state_sharded() -> None:
    # 12 bytes a weight and 4 of gradients: 122 GB, of 72 usable.
    assert not outcome(SEVEN, WORK, cluster(8), Placement(0, 8, False)).fits
    assert not best_placement(SEVEN, WORK, cluster(1)).fits
    found = best_placement(SEVEN, WORK, cluster(8))
    assert found.placement.sharded and found.rows > 0


def test_a_small_model_is_not_sharded() -> None:
    found = best_placement(PUBLISHED["qwen2.5-0.5b"], WORK, cluster(1))
    assert found.fits and found.placement == Placement(0, 1, False)


def test_a_model_that_no_sampler_can_hold_fits_nowhere() -> None:
    # 70.6 billion weights in bfloat16 are 141 GB; a learner's share of the rest does not matter.
    found = best_placement(PUBLISHED["llama-3.1-70b"], WORK, cluster(64))
    assert not found.fits and found.rows == 0 and not found.seconds


def test_late_samples_let_sampling_run_beside_learning() -> None:
    placed = Placement(4, 4, True)
    turns, beside = (outcome(SEVEN, WORK, cluster(8, max_staleness=late), placed) for late in (0, 1))
    sampling = turns.seconds["sampling"]
    assert turns.step == pytest.approx(sum(turns.seconds.values()))
    assert beside.overlapped and beside.step == pytest.approx(max(sampling, turns.step - sampling))


def test_cache_and_state_share_a_colocated_gpu() -> None:
    together, apart = (outcome(SEVEN, WORK, cluster(8), Placement(count, 8 - count, True)) for count in (0, 4))
    assert {"weights", "AdamW moments", "bfloat16 weights", "KV cache"} <= set(together.phases["sampling"])
    assert "weights" not in apart.phases["sampling"]
    assert apart.phases["update"]["weights"] == 2 * together.phases["update"]["weights"]


def test_rows_are_limited_by_samples_by_the_engine_and_by_memory() -> None:
    small = PUBLISHED["smollm2-135m"]
    assert outcome(small, WORK, cluster(8), Placement(0, 8, False)).rows == 32
    assert outcome(small, WORK, cluster(1), Placement(0, 1, False)).rows == 256
    assert outcome(small, WORK, cluster(1, constants=Constants()), Placement(0, 1, False)).rows == 64
    crowded = outcome(PUBLISHED["llama-2-7b"], WORK, cluster(8), Placement(4, 4, True))
    # 72 GB less 13.5 of weights; each sample 1,024 tokens of 524 KB and 32,000 logits, each prompt of eight 300 tokens.
    assert crowded.rows == 64 == WORK.share(4)[1]
    longer = replace(WORK, longest=8192, answer_tokens=4000)
    assert outcome(PUBLISHED["llama-2-7b"], longer, cluster(8), Placement(4, 4, True)).rows == 13
