"""Terminal lines of an estimate: placement, memory, seconds, cost, constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from burnish.planning.constants import origin
from burnish.planning.estimate import UNCOUNTED, RunEstimate, short_of
from burnish.planning.gpus import GIGA
from burnish.planning.memory import total
from burnish.planning.placement import Placement, placement_keys
from burnish.reports.wording import about


def estimate_lines(estimate: RunEstimate) -> Iterator[str]:
    """Yield the estimate as lines of text."""
    shape, cluster, work = estimate.shape, estimate.cluster, estimate.work
    yield f"recipe       {estimate.recipe}, {estimate.steps} steps of {work.prompts} prompts x {work.samples} samples"
    trains = "all weights" if work.rank is None else f"an adapter of rank {work.rank}"
    yield f"model        {shape.name}, {shape.parameters / 1e9:.2f} billion weights ({estimate.shape_origin}); {trains}"
    gpu = cluster.gpu
    yield (
        f"cluster      {cluster.gpus} x {gpu.name}: {gpu.flops / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{gpu.memory / GIGA:.0f} GB at {gpu.bandwidth / GIGA:.0f} GB/s, link {gpu.link / GIGA:.0f} GB/s ({gpu.source})"
    )
    for text in estimate.assumptions:
        yield f"assumed      {text}"
    yield f"reference    {work.reference or 'not needed'}"
    yield from _placement_lines(estimate)
    yield ""
    yield from _memory_lines(estimate)
    yield ""
    if estimate.outcome.fits:
        yield from _time_lines(estimate)
        yield ""
    yield "constants"
    for name, value in asdict(cluster.constants).items():
        yield f"  {name.replace('_', ' '):26}{value:<8g}{origin(cluster.constants, name)}"
    yield f"not counted  {UNCOUNTED}"


def placement_text(placement: Placement) -> str:
    """Return a placement in words."""
    state = "weights, gradients and moments sharded" if placement.sharded else "whole copies"
    if placement.gpus == 1:
        return "1 GPU samples and learns in turns"
    if not placement.samplers:
        return f"{placement.learners} GPUs sample and learn in turns (colocated), {state}"
    samplers, learners = (
        f"{count} {role}{'s' * (count > 1)}"
        for count, role in ((placement.samplers, "sampler"), (placement.learners, "learner"))
    )
    return f"{samplers} and {learners} (separate), {state}"


def _placement_lines(estimate: RunEstimate) -> Iterator[str]:
    found = estimate.outcome
    if not found.fits:
        yield f"placement    none fits; the nearest: {short_of(found)}"
        for text in estimate.remedies:
            yield f"would fit    {text}"
        if not estimate.remedies:
            yield "would fit    nothing that was tried: a smaller model, shorter samples or fewer tokens per microbatch"
        return
    idle = estimate.cluster.gpus - found.placement.gpus
    yield f"placement    {placement_text(found.placement)}"
    yield f"             at most {found.rows} samples in flight per sampler"
    if found.overlapped:
        yield "             sampling runs beside learning"
    if idle:
        yield f"             {idle} of {estimate.cluster.gpus} GPUs stay idle: this step is too small to gain from them"
    keys = placement_keys(found.placement, estimate.work.prompts, estimate.cluster.max_staleness)
    yield f"keys         {' '.join(f'{key}={value}' for key, value in keys.items())}"


def _memory_lines(estimate: RunEstimate) -> Iterator[str]:
    phases = estimate.outcome.phases
    yield f"{'memory per GPU, GB':24}" + "".join(f"{name:>11}" for name in phases)
    for part in dict.fromkeys(name for parts in phases.values() for name in parts):
        yield (f"  {part:22}" + "".join(_cell(parts.get(part)) for parts in phases.values())).rstrip()
    totals = "".join(_cell(total(parts)) for parts in phases.values())
    yield f"  {'total':22}{totals}  of {estimate.outcome.usable / GIGA:.1f} usable"


def _cell(size: float | None) -> str:
    return f"{'':>11}" if not size else f"{size / GIGA:11.2f}"


def _time_lines(estimate: RunEstimate) -> Iterator[str]:
    found, rates = estimate.outcome, estimate.tokens_per_second()
    for name, seconds in {**found.seconds, "step": found.step}.items():
        rate = f"{rates[name]:12,.0f} tokens/s" if name in rates else ""
        yield f"{name + ', s':34}{seconds:10.3g}{rate}".rstrip()
    cost = "" if estimate.cost is None else f", cost {estimate.cost:,.2f} at {estimate.price:g} per GPU hour"
    yield f"run          {about(estimate.steps * found.step)}, {estimate.gpu_hours:.3g} GPU hours{cost}"
