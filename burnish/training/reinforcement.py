"""A reinforcement run: the trainer with the policy-gradient step, held-out samples and reward guards."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

from burnish.errors import InputError
from burnish.evaluation.guards import (
    TrendRows,
    TrueTexts,
    diversity_alarm,
    evaluation_alarms,
    guard_alarms,
    length_alarm,
    part_alarm,
    same_answer_alarm,
)
from burnish.evaluation.held_out import PROMPTS_AT_ONCE, compare, measure, summary
from burnish.evaluation.measurement import Measurement
from burnish.evaluation.metrics import held_out_metrics
from burnish.protocols import CachesForward, HasReference, Observer, Releasable, Sampler, Scorer
from burnish.recipe.evaluation import answer_reading
from burnish.recipe.schema import Recipe
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Run
from burnish.system.clock import Clock
from burnish.training.learner import Learner
from burnish.training.step import train_step
from burnish.training.time_left import ADAPTER_PASSES, UPDATE_PASSES, Work, guess_step
from burnish.training.trainer import RunGuards, Trainer
from burnish.types import Prompt

HELD_OUT_SEED = 1
"""Mixed into the seed of held-out samples. The step is not, so before and after share random numbers."""
WARNING_STEPS = 5
"""Steps in a row that a warning looks at."""
FLAT_REMEDY = "take a reward of more levels, prompts that are neither always nor never solved, or more samples of each"


def measure_by_recipe(
    recipe: Recipe, policy: HasReference, sampler: Sampler, scorer: Scorer, metrics: Scorer | None,
    prompts: Sequence[Prompt], sets: Mapping[str, Sequence[Prompt]], *, observer: Observer, policy_version: int = 0,
    clock: Clock | None = None,
) -> Measurement:  # fmt: skip
    """Measure a policy on held-out prompts and on further sets with the recipe's settings."""
    settings = recipe.evaluation
    measure_prompts = partial(
        measure, policy, sampler, scorer, sampling=recipe.held_out_sampling,
        samples_per_prompt=settings.samples_per_prompt, seed=(recipe.seed, HELD_OUT_SEED, 0), metrics=metrics,
        better={section.part: section.better for section in settings.metrics}, observer=observer, clock=clock,
        policy_version=policy_version, correct=settings.correct, attempts=settings.attempts,
        majorities=settings.maj_at, reading=answer_reading(settings, recipe.reward),
    )  # fmt: skip
    measurement = measure_prompts(prompts)
    measurement = replace(measurement, sets={name: measure_prompts(one) for name, one in sets.items()})
    samples = [sample for one in (measurement, *measurement.sets.values()) for sample in one.samples]
    for name in measurement.metrics:
        if not any(name in sample.metrics for sample in samples):
            observer.message(f"metric '{name}' returned None for all held-out completions; is a return missing?")
    return measurement


@dataclass(frozen=True, slots=True)
class HeldOutEvaluator:
    """Measures a learner by samples of held-out prompts."""

    learner: Learner
    prompts: Sequence[Prompt]
    sets: Mapping[str, Sequence[Prompt]]
    observer: Observer
    clock: Clock = field(default_factory=Clock)

    @property
    def size(self) -> str:
        further = "".join(f", {len(prompts)} of set '{name}'" for name, prompts in self.sets.items())
        return f"{len(self.prompts)} held-out prompts{further}"

    def measure(self) -> Measurement:
        learner = self.learner
        measurement = measure_by_recipe(
            learner.recipe, learner.policy, learner.sampler, learner.scorer, learner.metrics, self.prompts, self.sets,
            observer=self.observer, policy_version=learner.step, clock=self.clock,
        )  # fmt: skip
        if isinstance(learner.policy.reference, Releasable):
            # Training may never need it again, and its memory is better spent on the step.
            learner.policy.reference.release()
        return measurement

    def guess_step(self, before: Measurement) -> float | None:
        learner, sampling = self.learner, self.learner.recipe.sampling
        some = self.prompts[:PROMPTS_AT_ONCE]
        length = fmean(len(learner.policy.encode_prompt(prompt)) for prompt in some)
        parts = [before, *before.sets.values()]
        samples = [sample.tokens for part in parts for sample in part.samples]
        if not (self.clock.laps and sum(samples)):
            return None
        each = self.learner.recipe.evaluation.samples_per_prompt
        measured = Work(len(samples) // each, length, sum(samples), len(some) * each)
        rows = sampling.prompts_per_step * sampling.samples_per_prompt
        step = Work(sampling.prompts_per_step, length, fmean(samples) * rows, rows)
        settings = learner.recipe.algorithm
        reuses = learner.recipe.optimizer.reuse_sampling and isinstance(learner.policy, CachesForward)
        passes = (ADAPTER_PASSES if learner.recipe.policy.lora else UPDATE_PASSES)[reuses]
        return guess_step(
            self.clock.laps, measured, step, passes=passes * settings.epochs * (1 + len(learner.critics)),
            true_tokens=sum(truth.tokens for part in parts for truth in part.truths),
            reads_reference=learner.kl.active or learner.credit.needs_reference,
        )  # fmt: skip

    def summary(self, measurement: Measurement) -> Mapping[str, float]:
        return summary(measurement, bleu_tokenize=self.learner.recipe.evaluation.bleu_tokenize)

    def directions(self, measurement: Measurement) -> Mapping[str, str | None]:
        tokenize = self.learner.recipe.evaluation.bleu_tokenize
        return {metric.name: metric.better for metric in held_out_metrics(measurement, tokenize)}

    def compare(self, before: Measurement, after: Measurement) -> dict[str, dict[str, Any]]:
        seed, settings = self.learner.recipe.seed, self.learner.recipe.evaluation
        return compare(before, after, resamples=settings.resamples, seed=seed, bleu_tokenize=settings.bleu_tokenize)

    def conclude(self, after: Measurement) -> Mapping[str, Any]:
        return {}

    to_json = staticmethod(Measurement.to_json)

    def from_json(self, text: str) -> Measurement:
        """Read what ``to_json`` wrote, for the prompts that are held out now."""
        measurement = Measurement.from_json(text)
        sets = {name: one.of_prompts(self.sets[name]) for name, one in measurement.sets.items() if name in self.sets}
        return replace(measurement.of_prompts(self.prompts), sets=sets)


class RewardGuards(RunGuards[Measurement]):
    """Alarms for rewards that are gamed, from metrics and held-out measurements.

    With ``guards.stop`` an alarm ends the run, and the model with the highest held-out reward before it is kept.
    """

    def __init__(self, run: Run, evaluator: HeldOutEvaluator, checkpointer: Checkpointer) -> None:
        self.run, self.evaluator, self.checkpointer = run, evaluator, checkpointer
        self.recipe, self.observer = evaluator.learner.recipe, evaluator.observer
        self.can_stop = self.recipe.guards.stop
        self.start_reward = 0.0
        """Held-out reward before training."""
        self.truth = TrueTexts()
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=WARNING_STEPS)
        self._steps = 0
        """Rows of metrics so far. A run may have millions, so few of them are kept."""
        window, parts = self.recipe.guards.window, (key for key in self.recipe.guarded if key.startswith("reward/"))
        watched = ("diversity/distinct_2", "length/mean", *parts)
        self._trend_rows = {key: TrendRows(("reward/mean", key), window) for key in watched}
        checkpointer.spared.append(self._spared_step)

    def begin(self, before: Measurement) -> bool:
        self.start_reward = sum(sample.reward for sample in before.samples) / len(before.samples)
        self.truth = TrueTexts.of(self.evaluator.prompts, before)
        self._recent.clear()
        self._steps = 0
        for kept in self._trend_rows.values():
            kept.clear()
        for row in self.run.rows("metrics.jsonl"):
            self._watch(row)
        self._forget_evaluation()
        if (self.can_stop or self.evaluator.learner.split is not None) and self.evaluator.learner.step == 0:
            # The model that is kept if nothing better comes before an alarm, or a part of it is lost.
            self.checkpointer.save()
        return self._stop_row() is not None

    def after_step(self, row: Mapping[str, Any] | None) -> bool:
        if row is not None:
            self._watch(row)
        if not self._recent:
            return False
        step = self._recent[-1]["step"]
        alarms = self._alarms()
        for kind, text in {**alarms, **self._warnings()}.items():
            self._warn(step, kind, text)
        return bool(alarms)

    def _watch(self, row: Mapping[str, Any]) -> None:
        self._steps += 1
        self._recent.append(row)
        for kept in self._trend_rows.values():
            kept.add(row)

    def _alarms(self) -> dict[str, str]:
        guards, history = self.recipe.guards, {key: kept.rows for key, kept in self._trend_rows.items()}
        window, drift = guards.window, guards.length_drift
        alarms = {
            "diversity": diversity_alarm(
                history["diversity/distinct_2"],
                drop=guards.diversity_drop,
                window=window,
                truth=self.truth,
                drift=drift,
            ),
            "length": length_alarm(history["length/mean"], drift=drift, window=window, truth=self.truth),
        }
        for part in (key.removeprefix("reward/") for key in history if key.startswith("reward/")):
            alarms[f"guard {part}"] = part_alarm(
                history[f"reward/{part}"], part, drop=guards.metric_drop, window=window
            )
        return {kind: text for kind, text in alarms.items() if text}

    def _warnings(self) -> dict[str, str]:
        """Return warnings that are not a reason to stop, by kind."""
        recent = list(self._recent)
        if len(recent) < WARNING_STEPS:
            return {}
        warnings = flat_warnings(recent, first=self._steps == WARNING_STEPS)
        cut = fmean(row["truncated"] for row in recent)
        if cut > self.recipe.guards.truncated:
            warnings["truncated"] = (
                f"{cut:.0%} of the samples of the last {WARNING_STEPS} steps were cut at sampling.max_new_tokens = "
                f"{self.recipe.sampling.max_new_tokens}, so the reward judged unfinished text: raise it, or set "
                "algorithm.mask_truncated = true; guards.truncated = 1 where texts are not meant to end"
            )
        for gate in (key.removeprefix("gate/") for key in recent[-1] if key.startswith("gate/")):
            if all(row.get(f"gate/{gate}") == 0 for row in recent):
                warnings[f"gate {gate}"] = (
                    f"no sample of the last {WARNING_STEPS} steps reached the gate of '{gate}', so no other reward "
                    f"gave credit; its mean in the last step was {recent[-1][f'reward/{gate}']:.3g}: lower the gate, "
                    "or fine-tune first (burnish sft)"
                )
        return warnings

    def examine(self, before: Measurement, now: Measurement) -> Mapping[str, Any]:
        if not (self.recipe.guarded or self.can_stop):
            return {}
        alarms = guard_alarms(self.evaluator.compare(before, now), **self._limits())
        return {"alarms": alarms} if alarms else {}

    def after_measurement(self, row: Mapping[str, Any]) -> bool:
        alarms: Mapping[str, str] = row.get("alarms", {})
        for key, text in alarms.items():
            self._warn(row["step"], f"held-out {key}", text)
        if self.can_stop and not alarms and row["reward"] > self._best(row["step"])[1]:
            self.checkpointer.save()
        return bool(alarms)

    def stop(self) -> None:
        step = self.evaluator.learner.step
        best, reward = self._best(step)
        text = (
            f"stopped after step {step} of {self.recipe.steps} because of an alarm; the model of step {best} is kept, "
            f"which had the highest held-out reward before it, {reward:.3g}"
        )
        self.run.append("warnings.jsonl", [{"step": step, "kind": "stop", "text": text, "kept": best}])
        self.observer.message(text, level="warning")

    def _spared_step(self) -> int | None:
        return self._best(self.evaluator.learner.step + 1)[0] if self.can_stop else None

    def end(self) -> None:
        stopped = self._stop_row()
        if stopped is None:
            return
        kept = next((saved for saved in self.run.checkpoints() if saved.step == stopped["kept"]), None)
        if kept is None:
            path = f"{self.run.folder}/checkpoints/step-{stopped['kept']}"
            raise InputError(f"{path}, which the guards kept, is missing: start a new run")
        self.checkpointer.restore(kept)
        self.run.choose_model(kept)

    def _forget_evaluation(self) -> None:
        """Drop the warnings about the evaluation of a run that was extended: another evaluation follows."""
        rows = self.run.rows("warnings.jsonl")
        if self.evaluator.learner.step < self.recipe.steps and self._stop_row() is None:
            kept = [row for row in rows if not str(row.get("kind")).startswith("evaluation ")]
            if len(kept) < len(rows):
                self.run.put("warnings.jsonl", "")
                self.run.append("warnings.jsonl", kept)

    def after_evaluation(self, evaluation: Mapping[str, Mapping[str, Any]], after: Measurement, step: int) -> None:
        alarms = [*evaluation_alarms(evaluation, **self._limits()), same_answer_alarm(after)]
        for number, text in enumerate(filter(None, alarms)):
            self._warn(step, f"evaluation {number}", text)

    def _best(self, until: int) -> tuple[int, float]:
        """Return the step below ``until`` with the highest held-out reward, the start included, and that reward."""
        rewards = {0: self.start_reward}
        rewards |= {row["step"]: row["reward"] for row in self.run.rows("held_out.jsonl") if row["step"] < until}
        best = max(rewards, key=rewards.__getitem__)
        return best, rewards[best]

    def _limits(self) -> dict[str, Any]:
        recipe, guards = self.recipe, self.recipe.guards
        return {
            "guards": recipe.guarded, "drop": guards.diversity_drop, "metric_drop": guards.metric_drop,
            "length_drift": guards.length_drift, "truth": self.truth,
        }  # fmt: skip

    def _stop_row(self) -> dict[str, Any] | None:
        return next((row for row in self.run.rows("warnings.jsonl") if row.get("kind") == "stop"), None)

    def _warn(self, step: int, kind: str, text: str) -> None:
        """Report a warning once per kind: repeated at every step it would bury everything else."""
        if all(row.get("kind") != kind for row in self.run.rows("warnings.jsonl")):
            self.run.append("warnings.jsonl", [{"step": step, "kind": kind, "text": text}])
            self.observer.message(text, level="warning")


def flat_warnings(rows: Sequence[Mapping[str, Any]], *, first: bool) -> dict[str, str]:
    """Return the warning that rewards did not differ in the metrics of the last steps, by its kind; or none.

    Groups that are flat in part are warned of in a run's first steps only: later they may be prompts that were learnt.
    """
    steps = f"the last {len(rows)} steps"
    nothing = ", so these steps had no gradient" if all(row["trained"] == 0 for row in rows) else ""
    if all(row["reward/std"] == 0 for row in rows):
        return {"equal rewards": f"every sample of {steps} had the same reward{nothing}: {FLAT_REMEDY}"}
    flat = fmean(row.get("flat_groups", 0.0) for row in rows)
    if flat < 1 and (flat <= 0.5 or not first):
        return {}
    share = "each group" if flat == 1 else f"{flat:.0%} of the groups"
    return {"flat groups": f"in {share} of {steps} all samples had the same reward{nothing}: {FLAT_REMEDY}"}


def _measured_before(run: Run, learner: Learner, held_out: Sequence[Prompt], observer: Observer) -> HeldOutEvaluator:
    """Return the evaluator of the prompts that were measured before training: only they can be compared.

    They are all, unless the data changed with the user's consent. Raises InputError if none is left.
    """
    path, sets = run.folder / "evaluation" / "before.json", learner.held_out_sets
    if not path.exists():
        return HeldOutEvaluator(learner, held_out, sets, observer)
    before = Measurement.from_json(path.read_text(encoding="utf-8"))
    left = {name: _left(f"set '{name}'", before.sets[name], one) for name, one in sets.items() if name in before.sets}
    return HeldOutEvaluator(learner, _left("task", before, held_out), left, observer)


def _left(where: str, before: Measurement, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    keys = {(sample.prompt_id, sample.prompt, sample.reference) for sample in before.samples}
    kept = [prompt for prompt in prompts if (prompt.id, prompt.text, prompt.reference) in keys]
    if not kept:
        raise InputError(f"{where}: no held-out prompt of the run's beginning is left: start a new run")
    return kept


def reinforcement_trainer(
    learner: Learner, run: Run, observer: Observer, held_out: Sequence[Prompt]
) -> Trainer[Measurement]:
    recipe = learner.recipe
    evaluator = _measured_before(run, learner, held_out, observer)
    checkpointer = Checkpointer(run, learner, recipe.checkpoint.keep, learner.split)
    guards = RewardGuards(run, evaluator, checkpointer)

    def step() -> Mapping[str, Any]:
        report = train_step(learner)
        run.append("samples.jsonl", report.samples)
        run.append("metrics.jsonl", [report.metrics])
        return report.metrics

    return Trainer(
        recipe, learner, step, evaluator=evaluator, checkpointer=checkpointer, run=run, observer=observer,
        guards=guards, measure_every=recipe.evaluation.every,
    )  # fmt: skip
