"""Memory of a GPU by part and phase: what samples, what computes the reference, what updates.

Numbers are as ``policy.dtype = "bfloat16"`` keeps them: trained weights, gradients and AdamW's two moments in float32,
products in bfloat16, frozen weights in bfloat16 (arXiv 1710.03740). Of what is sharded over S learners each holds 1/S
(ZeRO, arXiv 1910.02054, stage 3; torch's ``fully_shard``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from burnish.planning.shapes import Shape
from burnish.planning.workload import StepWork

WIDE, NARROW = 4, 2
"""Bytes of a number in float32 and in bfloat16."""
HEAD_BLOCK, HEAD_KEPT = 3 << 22, 3 << 24
"""Logits that the fused head computes at once, and probabilities that it keeps for the backward pass, in float32."""
GATHERED_LAYERS = 2
"""Layers of a sharded model that are whole at once: one is computed while the next arrives."""

Parts = dict[str, float]
"""Name of a part -> bytes."""


def trained_weights(shape: Shape, rank: int | None) -> int:
    """Return the number of weights with a gradient: all, or those of an adapter."""
    return shape.parameters if rank is None else shape.adapter_weights(rank)


def trained_state(shape: Shape, work: StepWork, shards: int) -> Parts:
    """Return the bytes that a learner always holds: 4 a weight, and 8 a trained weight for AdamW's two moments.

    An adapter's base is frozen and has 2 bytes a weight. A critic has as many weights as the policy.
    """
    trained = trained_weights(shape, work.rank)
    frozen = 0 if work.rank is None else shape.parameters
    weights = (WIDE * trained + NARROW * frozen) * work.models / shards
    return {"weights": weights, "AdamW moments": 2 * WIDE * trained * work.models / shards}


def gradient_bytes(shape: Shape, work: StepWork, shards: int) -> float:
    """Return the bytes of the gradients of a learner: 4 a trained weight."""
    return WIDE * trained_weights(shape, work.rank) * work.models / shards


def narrow_copy(shape: Shape, shards: int = 1) -> float:
    """Return the bytes of the bfloat16 weights of a forward pass.

    A whole model has 2 bytes a weight. A sharded one gathers ``GATHERED_LAYERS`` layers, the embedding and the head.
    """
    if shards == 1:
        return float(NARROW * shape.parameters)
    tables = shape.head_weights * (1 if shape.tied else 2)
    return float(NARROW * min(shape.parameters, GATHERED_LAYERS * shape.layer_weights + tables))


def cache_bytes_per_token(shape: Shape) -> int:
    """Return the bytes of a token's keys and values in all layers: 2 * layers * key-value heads * head size * 2."""
    return 2 * shape.layers * shape.key_width * NARROW


def cache_bytes(shape: Shape, work: StepWork, rows: int) -> float:
    """Return the bytes of the KV cache for a number of samples in flight.

    Each has room for its longest answer; a prompt is there once for all of its samples.
    """
    groups = math.ceil(rows / work.samples)
    return cache_bytes_per_token(shape) * (rows * work.longest + groups * work.prompt_tokens)


def layer_activation_bytes(shape: Shape) -> int:
    """Return the bytes of one token that one layer keeps for the backward pass under mixed precision.

    Counted on models of several widths (``tests/planning/test_activations.py``): 26 for each number of a state (inputs,
    factors and results of two norms, mostly in float32), 4 for each of the query heads and of the key heads (bfloat16
    queries, keys, values and the output of attention), 8 for each of the feed-forward part (gate, its activation, up,
    their product), and a float32 normaliser for each query head.
    """
    return 26 * shape.hidden + 4 * (shape.query_width + shape.key_width) + 8 * shape.intermediate + 4 * shape.heads


def activations(shape: Shape, work: StepWork) -> float:
    """Return the bytes of the activations of a microbatch; recomputed layers keep their input and one layer's rest."""
    layer = layer_activation_bytes(shape)
    each = WIDE * shape.hidden * shape.layers + layer if work.recomputes else layer * shape.layers
    return float(work.microbatch * each)


def sampling_memory(shape: Shape, work: StepWork, rows: int) -> Parts:
    """Return the parts of a sampler: bfloat16 weights, KV cache, and the logits of one decoding step in float32."""
    return {
        "bfloat16 weights": narrow_copy(shape),
        "KV cache": cache_bytes(shape, work, rows),
        "logits of a block": float(WIDE * rows * shape.vocabulary),
    }


def reference_memory(shape: Shape, work: StepWork, shards: int) -> Parts:
    """Return the parts of the pass under the reference, beside what the learner always holds.

    The reference is the policy without its adapter, or a second model in bfloat16.
    """
    frozen = NARROW * shape.parameters / shards if work.rank is None else 0.0
    gathered = narrow_copy(shape, shards) if shards > 1 else 0.0
    return {"reference": frozen + gathered, "logits of a block": float(WIDE * HEAD_BLOCK)}


def update_memory(shape: Shape, work: StepWork, shards: int) -> Parts:
    """Return the parts of the update, beside what the learner always holds.

    A frozen base is in bfloat16 already, so that an adapter needs no copy of it.
    """
    copied = work.rank is None or shards > 1
    return {
        "gradients": gradient_bytes(shape, work, shards),
        "bfloat16 weights": narrow_copy(shape, shards) if copied else 0.0,
        "activations": activations(shape, work),
        "logits of a block": float(WIDE * (HEAD_BLOCK + HEAD_KEPT)),
    }


def largest_cache_rows(shape: Shape, work: StepWork, free: float, limit: int) -> int:
    """Return the most samples, up to ``limit``, whose cache and logits fit into the free bytes; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        parts = sampling_memory(shape, work, middle)
        needed = parts["KV cache"] + parts["logits of a block"]
        low, high = (middle, high) if needed <= free else (low, middle - 1)
    return low


def total(parts: Mapping[str, float]) -> float:
    """Return the sum of the parts."""
    return sum(parts.values())


def together(held: Iterable[Mapping[str, float]]) -> Parts:
    """Return the parts of several roles on one GPU; parts of one name are added."""
    summed: Parts = {}
    for parts in held:
        for name, size in parts.items():
            summed[name] = summed.get(name, 0.0) + size
    return summed
