"""One step of supervised learning, and the trainer of a supervised run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch

from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer, ParameterOptimizer, Trainable
from burnish.run.checkpoint import Checkpointer, Stateful
from burnish.run.folder import Run
from burnish.run.interrupts import Interrupts
from burnish.supervised.dataset import Dataset
from burnish.supervised.objective import (
    Example,
    ExampleSums,
    Objective,
    compare_metrics,
    metric_values,
    sums_from_json,
    sums_to_json,
)  # fmt: skip
from burnish.supervised.recipe import SupervisedRecipe
from burnish.system.clock import Clock
from burnish.system.files import json_text
from burnish.training.batching import TokenBudget
from burnish.training.optimizer import clip_gradient, learning_rate, refuse_non_finite, set_learning_rate
from burnish.training.prompt_order import PromptOrder
from burnish.training.time_left import ADAPTER_PASSES, UPDATE_PASSES
from burnish.training.trainer import Trainer

SHOWN = 100
"""Held-out examples whose texts the run keeps for its report."""
EXAMPLES = "held_out_examples.jsonl"
MEASURED_AT_ONCE = 32
"""Examples per batch of a measurement, after each of which progress is reported."""

SHORT = 60
"""Characters of a row that a message quotes."""

T = TypeVar("T", bound=Trainable)


@dataclass(slots=True)
class SupervisedLearner(Generic[T]):
    """State of supervised training; a step changes the policy, the optimizer and ``step``."""

    recipe: SupervisedRecipe
    policy: T
    objective: Objective[T]
    data: Dataset
    optimizer: ParameterOptimizer
    step: int = 0
    interrupts: Interrupts = field(default_factory=Interrupts)
    parts: tuple[Stateful, ...] = ()


def supervised_step(learner: SupervisedLearner[T]) -> dict[str, Any]:
    """Make one update and return its row for metrics.jsonl.

    Raises BurnishError, with the weights unchanged, if the loss or the gradient is not finite.
    """
    recipe, policy, settings = learner.recipe, learner.policy, learner.recipe.optimizer
    step, clock = learner.step + 1, Clock()
    order = PromptOrder(len(learner.data.train), recipe.batch.examples_per_step, recipe.seed)
    examples = [learner.data.train[index] for index in order.step(step)]
    budget = TokenBudget.for_policy(settings.tokens_per_microbatch, policy)

    learner.optimizer.zero_grad(set_to_none=True)
    metrics = learner.objective.backward(policy, examples, budget)
    grad_norm = clip_gradient(policy.trainable().values(), settings.max_grad_norm)
    try:
        refuse_non_finite(step, metrics["loss"], grad_norm, rewarded=False)
    except BurnishError as error:
        raise BurnishError(f"{error} ({broken_row(learner, examples, budget)})") from error
    rate = learning_rate(recipe, step)
    set_learning_rate(learner.optimizer, rate)
    learner.interrupts.hold()  # until the trainer has written this step's row: half a step must not be saved
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.step = step
    tokens = sum(text.size for example in examples for text in example.texts)
    return {"step": step, **metrics, "grad_norm": grad_norm, "learning_rate": rate, **clock.metrics(tokens=tokens)}


def broken_row(learner: SupervisedLearner[T], examples: Sequence[Example], budget: TokenBudget) -> str:
    """Name the first example of a step whose own loss or gradient is not finite, or say that each alone has both."""
    for example in examples:
        learner.optimizer.zero_grad(set_to_none=True)
        loss = learner.objective.backward(learner.policy, [example], budget)["loss"]
        if not math.isfinite(loss + clip_gradient(learner.policy.trainable().values(), None)):
            text = " ".join(f"{example.texts[0].prompt} {example.texts[0].text}".split())
            return f"the first row that alone has no finite loss and gradient begins with '{text[:SHORT]}'"
    return "each row alone has a finite loss and gradient"


@dataclass(frozen=True, slots=True)
class ExampleEvaluator(Generic[T]):
    """Measures a supervised learner on its held-out examples."""

    learner: SupervisedLearner[T]
    observer: Observer
    clock: Clock = field(default_factory=Clock)

    @property
    def size(self) -> str:
        return f"{len(self.learner.data.held_out)} held-out examples"

    def measure(self) -> list[ExampleSums]:
        examples = self.learner.data.held_out
        sums: list[ExampleSums] = []
        for start in range(0, len(examples), MEASURED_AT_ONCE):
            part: Sequence[Any] = examples[start : start + MEASURED_AT_ONCE]
            with torch.no_grad(), self.clock.lap("forward"):
                sums += self.learner.objective.sums(self.learner.policy, part)
            self.observer.progress("evaluating", min(start + MEASURED_AT_ONCE, len(examples)), len(examples))
        return sums

    def guess_step(self, before: list[ExampleSums]) -> float | None:
        if not self.clock.laps:
            return None
        recipe, data = self.learner.recipe, self.learner.data
        measured, trained = (
            fmean(sum(text.size for text in example.texts) for example in examples)
            for examples in (data.held_out, data.train[:SHOWN])
        )
        forward = self.clock.laps["forward"] / (len(data.held_out) * measured)
        passes, _ = ADAPTER_PASSES if recipe.policy.lora else UPDATE_PASSES
        return passes * forward * trained * recipe.batch.examples_per_step

    def summary(self, measurement: list[ExampleSums]) -> Mapping[str, float]:
        return metric_values(measurement, self.learner.objective.metrics)

    def directions(self, measurement: list[ExampleSums]) -> Mapping[str, str | None]:
        return {metric.name: metric.better for metric in self.learner.objective.metrics}

    def compare(self, before: list[ExampleSums], after: list[ExampleSums]) -> dict[str, dict[str, Any]]:
        recipe, metrics = self.learner.recipe, self.learner.objective.metrics
        return compare_metrics(before, after, metrics, resamples=recipe.evaluation.resamples, seed=recipe.seed)

    def conclude(self, after: list[ExampleSums]) -> Mapping[str, Any]:
        return self.learner.objective.conclude(after, self.learner.recipe.seed)

    to_json = staticmethod(sums_to_json)

    def from_json(self, text: str) -> list[ExampleSums]:
        """Read what ``to_json`` wrote, for the examples that are held out now."""
        order = {unit: index for index, unit in enumerate(dict.fromkeys(e.unit for e in self.learner.data.held_out))}
        sums = [example for example in sums_from_json(text) if example.unit in order]
        return sorted(sums, key=lambda example: order[example.unit])


def supervised_trainer(
    learner: SupervisedLearner[T], run: Run, observer: Observer, *, accept: bool = False
) -> Trainer[list[ExampleSums]]:
    """Return the trainer of a supervised run.

    Raises InputError if the data have changed since it began, and that is not accepted.
    """
    recipe = learner.recipe
    record_data(run, learner.data.described, observer, accept=accept)
    earlier = run.folder / "evaluation" / "before.json"
    if earlier.exists():
        # Data that changed with the user's consent: only what was measured before training can be compared.
        units = {one.unit for one in sums_from_json(earlier.read_text(encoding="utf-8"))}
        held_out = tuple(example for example in learner.data.held_out if example.unit in units)
        if len({example.unit for example in held_out}) < 2:
            raise InputError("data: fewer than two held-out rows of the run's beginning are left: start a new run")
        learner.data = replace(learner.data, held_out=held_out)
    texts = example_texts(learner.data.held_out[:SHOWN])
    run.put(EXAMPLES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in texts))

    def step() -> Mapping[str, Any]:
        row = supervised_step(learner)
        run.append("metrics.jsonl", [row])
        return row

    return Trainer(
        recipe, learner, step, evaluator=ExampleEvaluator(learner, observer),
        checkpointer=Checkpointer(run, learner, recipe.checkpoint.keep), run=run, observer=observer,
        measure_every=recipe.evaluation.every,
    )  # fmt: skip


def example_texts(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """Yield the unit, the prompt and the answers of each example, label -> text, for the report."""
    for example in examples:
        texts = example.texts
        if example.desirable is not None:
            answers = {"desirable" if example.desirable else "undesirable": texts[0].text}
        elif len({text.text for text in texts}) > 1:
            answers = dict(zip(("preferred", "rejected"), (text.text for text in texts), strict=False))
        else:  # a text, or a conversation in several sequences
            answers = {"answer": texts[0].text}
        yield {"unit": example.unit, "prompt": texts[0].prompt, "answers": answers}


def record_data(run: Run, described: Mapping[str, Any], observer: Observer, *, accept: bool = False) -> None:
    """Write ``data.json`` for a new run; raise InputError if a resumed run's data have changed."""
    path = run.folder / "data.json"
    if accept or not path.exists():
        run.put("data.json", json_text(described))
        for note in described.get("notes", ()):
            observer.message(note, level="warning")
        if described["broken"]:
            observer.message(f"{len(described['broken'])} rows cannot be used; data.json lists them", level="warning")
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        same = recorded["sha256"] == described["sha256"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): start a new run") from error
    if not same:
        flag = "--accept-changed-inputs"
        raise InputError(f"{described['origin']} has changed since {run.folder} began: restore it, or add {flag}")
