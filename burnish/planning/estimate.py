"""The estimate of a run: placement, memory, seconds, hours and cost, and what would fit where nothing does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from burnish.errors import InputError
from burnish.planning.constants import Constants, origin
from burnish.planning.gpus import GIGA, GPUS, get_gpu
from burnish.planning.memory import total
from burnish.planning.placement import MOST_GPUS, Cluster, PlacedRun, best_placement, placement_keys
from burnish.planning.shapes import Shape, model_shape
from burnish.planning.workload import PROMPT_TOKENS, StepWork, read_work
from burnish.recipe.reading import read_recipe, validate
from burnish.recipe.schema import Recipe

LARGER = (2, 4, 8, 16, 32, 64, 128)
"""Numbers of GPUs that are tried where a placement does not fit."""
SUGGESTED_RANK = 16
"""Rank of the adapter that is tried where full fine-tuning does not fit."""
UNCOUNTED = "rewards, held-out measurements, checkpoints, loading the model, samples that a filter or refills replace"
"""What a run does besides, which takes time that no formula knows."""


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The estimate of a run on a cluster.

    Attributes:
        steps: of the run.
        shape_origin: where the model's shape is from.
        price: of one GPU and hour, in any currency; None if not given.
        assumptions: what was assumed about the recipe, one line each.
        remedies: where nothing fits: changes with which it would.
    """

    recipe: str
    steps: int
    shape: Shape
    shape_origin: str
    work: StepWork
    cluster: Cluster
    outcome: PlacedRun
    price: float | None = None
    assumptions: Sequence[str] = ()
    remedies: Sequence[str] = ()

    @property
    def hours(self) -> float:
        """Hours of all steps."""
        return self.steps * self.outcome.step / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times all GPUs of the cluster, idle ones included."""
        return self.hours * self.cluster.gpus

    @property
    def cost(self) -> float | None:
        """Price of all GPU hours."""
        return None if self.price is None else self.price * self.gpu_hours

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON: sizes in bytes, times in seconds and hours."""
        found, constants = self.outcome, self.cluster.constants
        placement = found.placement
        report: dict[str, Any] = {
            "recipe": self.recipe, "steps": self.steps, "fits": found.fits,
            "model": {**asdict(self.shape), "parameters": self.shape.parameters, "origin": self.shape_origin},
            "gpu": asdict(self.cluster.gpu), "gpus": self.cluster.gpus, "max_staleness": self.cluster.max_staleness,
            "work": asdict(self.work),
            "placement": {**_placed(found), "idle": self.cluster.gpus - placement.gpus},
            "keys": placement_keys(placement, self.work.prompts, self.cluster.max_staleness) if found.fits else None,
            "memory": {name: {**parts, "total": total(parts)} for name, parts in found.phases.items()},
            "usable_memory": found.usable,
            "constants": {
                name: {"value": value, "origin": origin(constants, name)} for name, value in asdict(constants).items()
            },
            "assumptions": list(self.assumptions), "not_counted": UNCOUNTED,
        }  # fmt: skip
        if not found.fits:
            return report | {"remedies": list(self.remedies)}
        return report | {
            "seconds": {**found.seconds, "step": found.step}, "tokens_per_second": self.tokens_per_second(),
            "hours": self.hours, "gpu_hours": self.gpu_hours, "cost": self.cost,
        }  # fmt: skip

    def tokens_per_second(self) -> dict[str, float]:
        """Return the sampled tokens per second of sampling and of the whole step, and the trained ones of the update.

        An update trains prompts, each once per group, and samples.
        """
        work, seconds = self.work, self.outcome.seconds
        sampled = work.rollouts * work.answer_tokens
        trained = (work.prompts * work.prompt_tokens + sampled) * work.epochs
        return {
            "sampling": sampled / seconds["sampling"], "update": trained / seconds["update"],
            "step": sampled / self.outcome.step,
        }  # fmt: skip


def estimate_run(
    source: str, *, gpus: int, gpu: str = "h100", model: str | None = None, overrides: Sequence[str] = (),
    price: float | None = None, prompt_tokens: float | None = None, answer_tokens: float | None = None,
    max_staleness: int = 0, constants: Constants | None = None,
) -> RunEstimate:  # fmt: skip
    """Return the estimate of a recipe on ``gpus`` GPUs of one kind; neither model nor data is loaded.

    Raises InputError if the recipe, a name or a number is not valid.
    """
    if not 1 <= gpus <= MOST_GPUS:
        raise InputError(f"--gpus {gpus}: must be between 1 and {MOST_GPUS}")
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise InputError(f"--price {price:g}: must be at least 0, per GPU and hour")
    if max_staleness < 0:
        raise InputError(f"--max-staleness {max_staleness}: must be at least 0")
    cluster = Cluster(get_gpu(gpu), gpus, constants or Constants(), max_staleness)
    data, where = read_recipe(source, overrides)
    recipe = validate(Recipe, data, where)
    work = read_work(recipe, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    shape, shape_origin = model_shape(model or recipe.policy.model)
    found = best_placement(shape, work, cluster)
    return RunEstimate(
        recipe.name, recipe.steps, shape, shape_origin, work, cluster, found, price,
        _assumptions(recipe, work, given=(prompt_tokens is not None, answer_tokens is not None)),
        () if found.fits else _remedies(shape, work, cluster),
    )  # fmt: skip


def _placed(found: PlacedRun) -> dict[str, Any]:
    return {**asdict(found.placement), "colocated": not found.placement.samplers, "rows": found.rows}


def _assumptions(recipe: Recipe, work: StepWork, *, given: tuple[bool, bool]) -> list[str]:
    lines = []
    if recipe.policy.dtype != "bfloat16":
        lines.append(f'policy.dtype = "bfloat16" (the recipe has "{recipe.policy.dtype}")')
    if not given[0]:
        limit = recipe.task.max_prompt_tokens
        reason = "the recipe's limit" if limit else f"no limit in the recipe, so {PROMPT_TOKENS}"
        lines.append(f"{work.prompt_tokens:g} tokens per prompt ({reason}; --prompt-tokens)")
    if not given[1]:
        lines.append(f"{work.answer_tokens:g} tokens per sample, the longest possible (--answer-tokens sets the mean)")
    return lines


def _remedies(shape: Shape, work: StepWork, cluster: Cluster) -> list[str]:
    """Return changes with which a placement fits: single ones, and where none is enough, another kind with more GPUs."""

    def fits(changed: Cluster = cluster, **change: Any) -> bool:
        return best_placement(shape, replace(work, **change), changed).fits

    counts = [count for count in LARGER if count > cluster.gpus]
    kinds = [gpu for gpu in sorted(GPUS.values(), key=lambda one: one.memory) if gpu.memory > cluster.gpu.memory]
    lines = [f"--gpus {count}" for count in counts if fits(replace(cluster, gpus=count))][:1]
    lines += [f"--gpu {gpu.name}" for gpu in kinds if fits(replace(cluster, gpu=gpu))][:1]
    adapter, recomputed = f"--set policy.lora.rank={SUGGESTED_RANK}", "--set policy.gradient_checkpointing=true"
    single = [adapter] * fits(rank=SUGGESTED_RANK) + [recomputed] * fits(recomputes=True)
    if not single and fits(rank=SUGGESTED_RANK, recomputes=True):
        single = [f"{adapter} {recomputed}"]
    if lines or single:
        return lines + single
    both = (replace(cluster, gpu=gpu, gpus=count) for gpu in kinds for count in counts)
    if larger := next((one for one in both if fits(one)), None):
        lines.append(f"--gpu {larger.gpu.name} --gpus {larger.gpus}")
    if frozen := next((one for one in kinds if fits(replace(cluster, gpu=one), rank=SUGGESTED_RANK)), None):
        lines.append(f"--gpu {frozen.name} {adapter}")
    return lines


def short_of(found: PlacedRun) -> str:
    """Return one line that says which phases need how much, of what, and how much there is."""
    reasons = []
    for phase, parts in found.phases.items():
        if total(parts) > found.usable:
            largest = sorted(parts.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{name} {size / GIGA:.1f}" for name, size in largest if size >= total(parts) / 20)
            reasons.append(f"{phase} needs {total(parts) / GIGA:.1f} GB ({listed})")
    return f"{'; '.join(reasons)}; {found.usable / GIGA:.1f} are usable"
