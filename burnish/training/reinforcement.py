"""A reinforcement run: the trainer with the policy-gradient step, held-out samples and reward guards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.evaluation.held_out import compare, measure, summary
from burnish.evaluation.measurement import Measurement
from burnish.protocols import Observer, Releasable
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Run
from burnish.training.learner import Learner
from burnish.training.reward_guards import RewardGuards
from burnish.training.step import train_step
from burnish.training.trainer import Trainer
from burnish.types import Prompt

HELD_OUT_SEED = 1
"""Mixed into the seed of held-out samples. It does not change with the step, so before and after share random numbers."""


@dataclass(frozen=True, slots=True)
class HeldOutEvaluator:
    """Measures a learner by samples of held-out prompts."""

    learner: Learner
    prompts: Sequence[Prompt]
    observer: Observer

    @property
    def size(self) -> str:
        return f"{len(self.prompts)} held-out prompts"

    def measure(self) -> Measurement:
        learner, recipe = self.learner, self.learner.recipe
        measurement = measure(
            learner.policy,
            learner.sampler,
            learner.scorer,
            self.prompts,
            sampling=recipe.sampling.params,
            samples_per_prompt=recipe.evaluation.samples_per_prompt,
            seed=(recipe.seed, HELD_OUT_SEED, 0),
            metrics=learner.metrics,
            better={section.part: section.better for section in recipe.evaluation.metrics},
            observer=self.observer,
            policy_version=learner.step,
        )
        if isinstance(learner.policy.reference, Releasable):
            # Training may never need it again, and its memory is better spent on the step.
            learner.policy.reference.release()
        return measurement

    def summary(self, measurement: Measurement) -> Mapping[str, float]:
        return summary(measurement, bleu_tokenize=self.learner.recipe.evaluation.bleu_tokenize)

    def compare(self, before: Measurement, after: Measurement) -> dict[str, dict[str, Any]]:
        recipe, settings = self.learner.recipe, self.learner.recipe.evaluation
        return compare(
            before, after, resamples=settings.resamples, seed=recipe.seed, bleu_tokenize=settings.bleu_tokenize
        )  # fmt: skip

    def conclude(self, after: Measurement) -> Mapping[str, Any]:
        return {}

    def to_json(self, measurement: Measurement) -> str:
        return measurement.to_json()

    def from_json(self, text: str) -> Measurement:
        return Measurement.from_json(text)


def reinforcement_trainer(
    learner: Learner, run: Run, observer: Observer, held_out: Sequence[Prompt]
) -> Trainer[Measurement]:
    """Return the trainer of a reinforcement run."""
    recipe = learner.recipe
    evaluator = HeldOutEvaluator(learner, held_out, observer)
    checkpointer = Checkpointer(run, learner, recipe.checkpoint.keep)
    guards = RewardGuards(recipe, run, observer, checkpointer, evaluator.compare)

    def step() -> Mapping[str, Any]:
        report = train_step(learner)
        run.append("samples.jsonl", report.samples)
        run.append("metrics.jsonl", [report.metrics])
        return report.metrics

    return Trainer(
        recipe, learner, step, evaluator=evaluator, checkpointer=checkpointer, run=run, observer=observer, guards=guards,
        measure_every=recipe.evaluation.every,
    )  # fmt: skip
