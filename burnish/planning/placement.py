"""Placement: which GPUs sample and which learn, whether weights are sharded, and what fits.

A sampler holds a whole model on one GPU. Learners split a step's prompts; each has the whole model, or 1/S of it.
Every way of using up to N GPUs is tried, so more GPUs are never slower: some may be left idle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from burnish.planning import memory, speed
from burnish.planning.constants import Constants
from burnish.planning.gpus import GPU
from burnish.planning.shapes import Shape
from burnish.planning.workload import StepWork

MOST_GPUS = 1024
"""Largest cluster that is tried."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Who samples and who learns.

    Attributes:
        samplers: GPUs that only sample; 0 if all learners sample too, in turns.
        learners: GPUs that learn.
        sharded: whether each learner holds 1/S of the weights, gradients and moments, or all of them.
    """

    samplers: int
    learners: int
    sharded: bool

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return self.samplers + self.learners

    @property
    def shards(self) -> int:
        """Learners that share one copy of the trained state."""
        return self.learners if self.sharded else 1

    @property
    def sampling_gpus(self) -> int:
        """GPUs that sample."""
        return self.samplers or self.learners


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """What a placement needs and how long its step takes.

    Attributes:
        phases: name of a phase -> part -> bytes on the GPU that holds the most.
        usable: bytes that tensors may fill.
        rows: samples that one sampler decodes at once; 0 where not even one fits.
        seconds: part of a step -> seconds; empty if the placement does not fit.
        overlapped: whether sampling runs beside learning.
    """

    placement: Placement
    phases: Mapping[str, memory.Parts]
    usable: float
    rows: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    overlapped: bool = False

    @property
    def peak(self) -> float:
        """Bytes of the phase that needs the most."""
        return max(memory.total(parts) for parts in self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether every phase fits, with at least one sample in flight."""
        return self.rows > 0 and self.peak <= self.usable

    @property
    def step(self) -> float:
        """Seconds of a step: the sum of its parts, or the longer of sampling and the rest where they overlap."""
        sampling = self.seconds["sampling"]
        rest = sum(self.seconds.values()) - sampling
        return max(sampling, rest) if self.overlapped else sampling + rest


@dataclass(frozen=True, slots=True)
class Cluster:
    """N GPUs of one kind, the constants of an estimate, and by how many steps samples may be late."""

    gpu: GPU
    gpus: int
    constants: Constants
    max_staleness: int = 0


def placement_keys(placement: Placement, prompts: int, max_staleness: int) -> dict[str, str]:
    """Return the recipe's keys for a placement, as ``--set`` takes them, for a step with so many prompts.

    The driver is the first learner.
    """
    keys = {"policy.device": "cuda"}
    if placement.gpus == 1:
        return keys
    keys |= {"backend.use": "ray", "backend.samplers": str(min(placement.sampling_gpus, prompts))}
    share = "1" if placement.samplers else "0.5"
    keys["backend.gpus"] = share
    if placement.learners > 1:
        keys |= {"backend.learners": str(placement.learners), "backend.learner_gpus": share}
        keys |= {"backend.shard": "true"} if placement.sharded else {}
        keys |= {} if placement.samplers else {"backend.colocate": "true"}
    if placement.samplers and max_staleness:
        keys["backend.max_staleness"] = str(max_staleness)
    return keys


def best_placement(shape: Shape, work: StepWork, cluster: Cluster) -> PlacedRun:
    """Return the fastest placement that fits, the one with the fewest GPUs among equals.

    If none fits, return the one that lacks the least memory; its ``fits`` is False.
    """
    outcomes = [outcome(shape, work, cluster, placement) for placement in placements(cluster)]
    if fitting := [one for one in outcomes if one.fits]:
        return min(fitting, key=lambda one: (one.step, one.placement.gpus, one.placement.sharded))
    return min(outcomes, key=lambda one: (one.peak, one.placement.gpus))


def placements(cluster: Cluster) -> Iterator[Placement]:
    """Yield the placements on up to N GPUs.

    Beyond a machine, roles have whole machines. What a smaller cluster can do, a larger one can.
    """
    machine = cluster.constants.gpus_per_machine
    counts = [
        *range(1, min(machine, cluster.gpus) + 1), *range(2 * machine, cluster.gpus + 1, machine)
    ]  # fmt: skip
    for learners in counts:
        for sharded in (False, True) if learners > 1 else (False,):
            yield Placement(0, learners, sharded)
            yield from (Placement(count, learners, sharded) for count in counts if count + learners <= cluster.gpus)


def outcome(shape: Shape, work: StepWork, cluster: Cluster, placement: Placement) -> PlacedRun:
    """Return the memory of a placement and, if it fits, the seconds of its step."""
    usable = cluster.gpu.memory * cluster.constants.usable_memory
    held = memory.trained_state(shape, work, placement.shards)
    beside = {} if placement.samplers else held
    _, samples = work.share(placement.sampling_gpus)
    free = usable - memory.total(beside) - memory.narrow_copy(shape)
    rows = memory.largest_cache_rows(shape, work, free, min(samples, cluster.constants.rows))
    phases = {"sampling": memory.together((beside, memory.sampling_memory(shape, work, max(rows, 1))))}
    if work.reference:
        phases["reference"] = memory.together((held, memory.reference_memory(shape, work, placement.shards)))
    phases["update"] = memory.together((held, memory.update_memory(shape, work, placement.shards)))
    overlapped = bool(placement.samplers) and cluster.max_staleness > 0
    found = PlacedRun(placement, phases, usable, rows, {}, overlapped)
    if not found.fits:
        return found
    seconds = step_seconds(shape, work, cluster, placement, rows)
    return PlacedRun(placement, phases, usable, rows, seconds, overlapped)


def step_seconds(
    shape: Shape, work: StepWork, cluster: Cluster, placement: Placement, rows: int
) -> Mapping[str, float]:
    """Return the seconds of the parts of a step: sampling, passes without gradient, update, optimizer, weight sync."""
    rates, constants = speed.Rates.of(cluster.gpu, cluster.constants), cluster.constants
    prompts, samples = work.share(placement.sampling_gpus)
    seconds = {
        "sampling": speed.decoding_seconds(
            shape, work, rates, constants, prompts=prompts, samples=samples, rows=rows
        )
    }  # fmt: skip
    learners, shards, sharded = placement.learners, placement.shards, placement.sharded
    prompts, samples = work.share(learners)
    forward = speed.forward_seconds(shape, work, rates, constants, prompts=prompts, samples=samples, shards=shards)
    if work.reference:
        seconds["reference"] = forward
    if work.extra_passes:
        seconds["old log-probabilities, values"] = work.extra_passes * forward
    seconds["update"] = speed.update_seconds(
        shape, work, rates, constants, prompts=prompts, samples=samples, learners=learners, sharded=sharded
    )
    seconds["optimizer"] = speed.optimizer_seconds(shape, work, rates, shards)
    seconds["weight sync"] = speed.sync_seconds(
        shape, work, rates, learners=learners, samplers=placement.samplers, sharded=sharded
    )
    return seconds
