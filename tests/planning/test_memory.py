"""Memory by part: values derived by hand for a tiny model, sums, and growth with everything that takes memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.planning import memory
from burnish.planning.shapes import PUBLISHED, Shape
from burnish.planning.workload import StepWork

TINY = Shape(
    "tiny", layers=2, hidden=4, heads=2, key_value_heads=1, head_size=2, intermediate=8, vocabulary=10, tied=False
)  # fmt: skip
"""388 weights, 144 in the matrices of each of two layers and 40 in each of embedding and head (test_shapes)."""
WORK = StepWork(prompts=2, samples=2, prompt_tokens=3, answer_tokens=2, longest=5, microbatch=100)


def test_what_a_learner_holds() -> None:
    # 4 bytes a weight and 8 for its two moments; gradients as many as weights.
    assert memory.trained_state(TINY, WORK, 1) == {"weights": 4 * 388, "AdamW moments": 8 * 388}
    assert memory.gradient_bytes(TINY, WORK, 1) == 4 * 388
    assert memory.trained_state(TINY, WORK, 4) == {"weights": 388, "AdamW moments": 776}
    # A critic has as many weights as the policy.
    assert memory.trained_state(TINY, replace(WORK, critic=True), 1)["weights"] == 2 * 4 * 388


def test_an_adapter_freezes_the_rest_in_bfloat16() -> None:
    work = replace(WORK, rank=1)  # 128 weights
    assert memory.trained_state(TINY, work, 1) == {"weights": 4 * 128 + 2 * 388, "AdamW moments": 8 * 128}
    assert memory.update_memory(TINY, work, 1)["gradients"] == 4 * 128
    # The frozen base is in bfloat16 already, and the policy without its adapter is the reference.
    assert memory.update_memory(TINY, work, 1)["bfloat16 weights"] == 0
    assert memory.reference_memory(TINY, work, 1)["reference"] == 0
    assert memory.reference_memory(TINY, WORK, 1)["reference"] == 2 * 388


def test_the_cache_has_room_for_the_longest_answers_and_each_prompt_once() -> None:
    # Keys and values, two layers, one head of two numbers, two bytes.
    assert memory.cache_bytes_per_token(TINY) == 2 * 2 * 2 * 2
    # Three samples of five tokens; they belong to two prompts of three tokens.
    assert memory.cache_bytes(TINY, WORK, 3) == 16 * (3 * 5 + 2 * 3)
    assert memory.sampling_memory(TINY, WORK, 3)["logits of a block"] == 4 * 3 * 10


def test_activations() -> None:
    # 26 bytes for each of 4 numbers of a state; bfloat16 queries and the output of attention, 4 numbers each; keys and
    # values, 2 each; four tensors of the feed-forward part, 8 each; float32 numbers of two heads.
    per_layer = 26 * 4 + 2 * (4 + 4 + 2 + 2) + 2 * 4 * 8 + 4 * 2
    assert memory.layer_activation_bytes(TINY) == per_layer == 200
    assert memory.activations(TINY, WORK) == 100 * 2 * 200
    # Recomputed layers keep their input, 4 numbers in float32, and one layer is whole at a time.
    assert memory.activations(TINY, replace(WORK, recomputes=True)) == 100 * (2 * 16 + 200)


def test_a_sharded_model_gathers_two_layers_and_the_tables() -> None:
    assert memory.narrow_copy(TINY) == 2 * 388
    shape = replace(TINY, layers=8)
    assert memory.narrow_copy(shape, 4) == 2 * (2 * 144 + 2 * 40)
    assert memory.narrow_copy(replace(shape, tied=True), 4) == 2 * (2 * 144 + 40)
    assert memory.reference_memory(shape, WORK, 4)["reference"] == 2 * shape.parameters / 4 + 2 * (2 * 144 + 2 * 40)


def test_most_rows_fit_exactly() -> None:
    def needed(rows: int) -> float:
        parts = memory.sampling_memory(TINY, WORK, rows)
        return parts["KV cache"] + parts["logits of a block"]

    assert memory.largest_cache_rows(TINY, WORK, needed(7), 64) == 7
    assert memory.largest_cache_rows(TINY, WORK, needed(7) - 1, 64) == 6
    assert memory.largest_cache_rows(TINY, WORK, needed(7), 3) == 3
    assert memory.largest_cache_rows(TINY, WORK, -1.0, 64) == 0


def test_parts_of_two_roles_are_added() -> None:
    assert memory.together(({"weights": 1.0, "KV cache": 2.0}, {"weights": 3.0})) == {"weights": 4.0, "KV cache": 2.0}
    assert memory.total({"weights": 4.0, "KV cache": 2.0}) == 6.0


@pytest.mark.parametrize(
    "change",
    [{"longest": 600}, {"prompt_tokens": 900}, {"microbatch": 4000}, {"critic": True}],
    ids=lambda change: next(iter(change)),
)
def test_more_work_never_takes_less_memory(change: dict[str, int]) -> None:
    work = StepWork(8, 8, 200, 100, 500, 2000)
    shape = PUBLISHED["qwen2.5-1.5b"]
    for parts in (memory.trained_state, memory.update_memory):
        assert memory.total(parts(shape, replace(work, **change), 2)) >= memory.total(parts(shape, work, 2))
    larger = memory.sampling_memory(shape, replace(work, **change), 16)
    assert memory.total(larger) >= memory.total(memory.sampling_memory(shape, work, 16))


def test_memory_grows_with_the_model_and_shrinks_with_shards() -> None:
    work = StepWork(8, 8, 200, 100, 500, 2000)
    shapes = [PUBLISHED[f"qwen2.5-{size}b"] for size in ("0.5", "1.5", "3", "7", "14", "32", "72")]
    states = [memory.total(memory.trained_state(shape, work, 1)) for shape in shapes]
    assert states == sorted(states)
    shards = [memory.total(memory.trained_state(shapes[3], work, count)) for count in (1, 2, 4, 8)]
    assert shards == sorted(shards, reverse=True)
