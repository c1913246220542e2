"""One step of supervised learning, and what its session measures and keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from burnish.errors import InputError
from burnish.protocols import Trainable
from burnish.run.folder import Checkpoint
from burnish.run.interrupts import Interrupts
from burnish.supervised.dataset import Dataset
from burnish.supervised.measurement import Seen, compare, from_json, summary, to_json
from burnish.supervised.objective import Objective
from burnish.supervised.recipe import SupervisedRecipe
from burnish.system.files import json_text
from burnish.training.batching import TokenBudget
from burnish.training.metrics import Clock
from burnish.training.prompt_order import Draw
from burnish.training.step import learning_rate, refuse_non_finite
from burnish.training.trainer import BaseSession

MEASURED_AT_ONCE = 32
"""Examples between two signs of progress."""


T = TypeVar("T", bound=Trainable)


@dataclass(slots=True)
class Learner(Generic[T]):
    """Everything that a step needs; it changes the policy's weights, the optimizer's state and ``step``."""

    recipe: SupervisedRecipe
    policy: T
    objective: Objective[T]
    data: Dataset
    optimizer: torch.optim.Optimizer
    step: int = 0
    interrupts: Interrupts = field(default_factory=Interrupts)


def train_step(learner: Learner[T]) -> dict[str, Any]:
    """One update. Returns a row for metrics.jsonl.

    Raises:
        BurnishError: the loss or the gradient is not finite; the weights are as they were.
    """
    recipe, policy, settings = learner.recipe, learner.policy, learner.recipe.optimizer
    step, clock = learner.step + 1, Clock()
    draw = Draw(len(learner.data.train), recipe.batch.examples_per_step, recipe.seed)
    examples = [learner.data.train[place] for place in draw.step(step)]
    tokens = settings.tokens_per_microbatch
    budget = TokenBudget.fitting(policy.max_microbatch_tokens) if tokens is None else TokenBudget(tokens, tokens)

    learner.optimizer.zero_grad(set_to_none=True)
    found = learner.objective.backward(policy, examples, budget)
    limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
    grad_norm = float(torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), limit))
    refuse_non_finite(step, found["loss"], grad_norm, rewarded=False)
    rate = learning_rate(recipe, step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    learner.interrupts.hold()  # until the loop has written this step down: half a step is no state to save
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.step = step
    read = sum(text.size for example in examples for text in example.texts)
    return {"step": step, **found, "grad_norm": grad_norm, "learning_rate": rate, **clock.metrics(tokens=read)}


class Session(BaseSession[Learner[T], list[Seen]], Generic[T]):
    """One process's work on one run."""

    def step(self) -> Mapping[str, Any]:
        row = train_step(self.learner)
        self.run.append("metrics.jsonl", [row])
        return row

    def held_out_size(self) -> str:
        return f"{len(self.learner.data.held_out)} held-out examples"

    def summarised(self, found: list[Seen]) -> Mapping[str, float]:
        return summary(found, self.learner.objective.metrics)

    def read(self, text: str) -> list[Seen]:
        return from_json(text)

    def written(self, found: list[Seen]) -> str:
        return to_json(found)

    def restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state.get("step") != checkpoint.step:
            raise InputError(
                f"{checkpoint.folder}/state.json is of another step; delete the folder to go on from an older one"
            )
        super().restore(checkpoint)

    def conclude(self, before: list[Seen], after: list[Seen]) -> dict[str, dict[str, Any]]:
        recipe, objective = self.learner.recipe, self.learner.objective
        evaluation = compare(
            before, after, objective.metrics, resamples=recipe.evaluation.resamples, seed=recipe.seed
        )  # fmt: skip
        self.run.put("evaluation.json", json_text(evaluation))
        for name, found in objective.findings(after, recipe.seed).items():
            self.run.put(name, json_text(found))
        return evaluation

    def measure(self) -> list[Seen]:
        examples = self.learner.data.held_out
        found: list[Seen] = []
        for start in range(0, len(examples), MEASURED_AT_ONCE):
            part: Sequence[Any] = examples[start : start + MEASURED_AT_ONCE]
            with torch.no_grad():
                found += self.learner.objective.seen(self.learner.policy, part)
            self.observer.progress("evaluating", min(start + MEASURED_AT_ONCE, len(examples)), len(examples))
        return found

    def begin(self) -> None:
        """Refuses data that are not what the run began with."""
        path, described = self.run.folder / "data.json", self.learner.data.described
        if not path.exists():
            self.run.put("data.json", json_text(described))
            if described["broken"]:
                text = f"{len(described['broken'])} rows cannot be used; data.json lists them"
                self.observer.message(text, level="warning")
            return
        try:
            then = json.loads(path.read_text(encoding="utf-8"))
            same = then["sha256"] == described["sha256"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}): start a new run") from error
        if not same:
            raise InputError(f"{described['origin']} has changed since {self.run.folder} began: start a new run")
