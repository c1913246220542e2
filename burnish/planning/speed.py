"""Seconds of the parts of a step, from operations and bytes.

Operations follow Kaplan et al. (arXiv 2001.08361, section 2.1): 2 per weight and token forward and 4 backward, or 2 with
frozen weights. Attention, which they leave out, is 4 per layer, number of the query heads and pair of tokens forward.
A part takes as long as the slowest of its arithmetic, its traffic and the starting of its kernels, which run at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from burnish.planning.constants import GIGA, MILLI, Constants
from burnish.planning.gpus import GPU
from burnish.planning.memory import NARROW, WIDE, cache_bytes_per_token, trained_weights
from burnish.planning.shapes import Shape
from burnish.planning.workload import StepWork

OPTIMIZER_NUMBERS = 7
"""Numbers that AdamW moves per weight: reads weight, gradient and two moments, writes weight and two moments."""


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations of a forward pass: products with weights, and attention."""

    products: float
    attention: float

    @property
    def forward(self) -> float:
        """All operations of a forward pass."""
        return self.products + self.attention

    def training(self, *, adapter: bool, recomputes: bool) -> float:
        """Return the operations of forward and backward: 3 forward passes; 2 of its products with frozen weights.

        Recomputed layers add a forward pass.
        """
        return self.products * (2 if adapter else 3) + self.attention * 3 + self.forward * recomputes


@dataclass(frozen=True, slots=True)
class Rates:
    """What one GPU reaches: operations per second, and bytes per second of its memory and of its link to others."""

    flops: float
    bandwidth: float
    link: float
    network: float
    machine: int

    @classmethod
    def of(cls, gpu: GPU, constants: Constants) -> Rates:
        """Return the published figures times the constants' shares."""
        return cls(
            gpu.flops * constants.training_utilisation, gpu.bandwidth * constants.bandwidth_utilisation,
            gpu.link * constants.link_utilisation,
            constants.network * GIGA * constants.link_utilisation, constants.gpus_per_machine,
        )  # fmt: skip

    def between(self, gpus: int) -> float:
        """Return the bytes per second at which each of several GPUs gets what all others have.

        Data enters a machine once, by all its ports, and is passed on inside.
        """
        return self.link if gpus <= self.machine else min(self.link, self.network * self.machine)


def pass_tokens(work: StepWork, prompts: int, samples: int) -> float:
    """Return the tokens of a pass over some prompts, each once for all of its samples, and some samples."""
    return prompts * work.prompt_tokens + samples * work.answer_tokens


def pass_operations(shape: Shape, work: StepWork, prompts: int, samples: int) -> Operations:
    """Return the operations of a forward pass over some prompts and samples.

    Layers compute all tokens, the head those of the samples. A token of a prompt of length p sees p / 2 tokens on
    average, a token of a sample of length a sees p + a / 2.
    """
    prompt, answer = work.prompt_tokens, work.answer_tokens
    pairs = prompts * prompt**2 / 2 + samples * (answer * prompt + answer**2 / 2)
    layers = 2 * shape.layers * shape.layer_weights * pass_tokens(work, prompts, samples)
    head = 2 * shape.head_weights * samples * answer
    return Operations(layers + head, 4 * shape.layers * shape.query_width * pairs)


def decoding_steps(work: StepWork, samples: int, rows: int) -> int:
    """Return the steps in which a sampler decodes its samples, ``rows`` at once: at least as many as the longest has."""
    return max(work.longest, math.ceil(samples * work.answer_tokens / rows))


def decoding_seconds(
    shape: Shape, work: StepWork, rates: Rates, constants: Constants, *, prompts: int, samples: int, rows: int
) -> float:
    """Return the seconds of reading prompts and decoding samples on one sampler, at most ``rows`` samples at once.

    Each decoding step reads all weights once for all rows, the keys and values of each row's own tokens, and those of
    each prompt once for its samples.
    """
    answer = work.answer_tokens
    prompt = pass_operations(shape, work, prompts, 0).forward
    steps = decoding_steps(work, samples, rows)
    cached = samples * answer * (answer + 1) / 2 + prompts * answer * work.prompt_tokens
    read = steps * NARROW * shape.products + cache_bytes_per_token(shape) * cached
    sampled = pass_operations(shape, work, 0, samples).forward
    launches = steps * shape.layers * constants.sampling_launch * MILLI
    return prompt / rates.flops + max(read / rates.bandwidth, sampled / rates.flops, launches)


def forward_seconds(
    shape: Shape, work: StepWork, rates: Rates, constants: Constants, *, prompts: int, samples: int, shards: int
) -> float:
    """Return the seconds of a pass without gradient over a learner's share; a sharded model is gathered each time."""
    count = math.ceil(pass_tokens(work, prompts, samples) / work.microbatch)
    gathered = count * NARROW * shape.parameters * (shards - 1) / shards / rates.between(shards)
    launches = count * shape.layers * constants.training_launch * MILLI / 3
    return max(pass_operations(shape, work, prompts, samples).forward / rates.flops, gathered, launches)


def update_seconds(
    shape: Shape, work: StepWork, rates: Rates, constants: Constants, *, prompts: int, samples: int, learners: int,
    sharded: bool,
) -> float:  # fmt: skip
    """Return the seconds of all forward and backward passes of a learner's share, and of adding up gradients.

    Sharded, every microbatch gathers the bfloat16 weights twice and scatters float32 gradients, beside the arithmetic.
    Else gradients are summed once per update in a ring, which moves them twice (arXiv 1910.02054, section 7).
    """
    operations = pass_operations(shape, work, prompts, samples)
    arithmetic = work.epochs * operations.training(adapter=work.rank is not None, recomputes=work.recomputes)
    count = max(work.updates, work.epochs * math.ceil(pass_tokens(work, prompts, samples) / work.microbatch))
    launches = count * shape.layers * constants.training_launch * MILLI
    gradients = WIDE * trained_weights(shape, work.rank)
    moved, rate = (learners - 1) / learners, rates.between(learners)
    traffic = count * (2 * NARROW * shape.parameters + gradients) * moved / rate if sharded else 0.0
    summed = 0.0 if sharded else work.updates * 2 * gradients * moved / rate
    return work.models * (max(arithmetic / rates.flops, launches, traffic) + summed)


def optimizer_seconds(shape: Shape, work: StepWork, rates: Rates, shards: int) -> float:
    """Return the seconds of AdamW: ``OPTIMIZER_NUMBERS`` float32 numbers per trained weight through memory."""
    numbers = OPTIMIZER_NUMBERS * trained_weights(shape, work.rank) * work.models * work.updates / shards
    return WIDE * numbers / rates.bandwidth


def sync_seconds(shape: Shape, work: StepWork, rates: Rates, *, learners: int, samplers: int, sharded: bool) -> float:
    """Return the seconds in which samplers get the new bfloat16 weights, or the adapter's in float32.

    Where a GPU learns and samples (``samplers`` is 0), it rounds its own weights: 4 bytes read, 2 written. Shards are
    gathered first. Other GPUs get all of them over the link, once.
    """
    sent = NARROW * shape.parameters if work.rank is None else WIDE * trained_weights(shape, work.rank)
    rounding = (WIDE + NARROW) * shape.parameters / (learners if sharded else 1) / rates.bandwidth
    gathering = sent * (learners - 1) / learners / rates.between(learners) if sharded else 0.0
    return rounding + gathering + (sent / rates.between(learners + samplers) if samplers else 0.0)
