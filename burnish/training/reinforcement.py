"""The loop around the step: held-out samples measured before and after, guards, and what a run of ``train`` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.evaluation.guards import diversity_alarm, evaluation_alarms, guard_alarms, length_alarm, part_alarm
from burnish.evaluation.held_out import compare, measure, summary
from burnish.evaluation.measurement import Measurement
from burnish.protocols import Observer, Releasable
from burnish.run.folder import Checkpoint, Run
from burnish.system.files import json_text
from burnish.training.learner_state import restore, state_of, write_learner
from burnish.training.step import Learner, train_step
from burnish.training.trainer import BaseSession
from burnish.types import Prompt

HELD_OUT_SEED = 1
"""Mixed into the seed of held-out samples. It does not change with the step, so before and after share their numbers."""

EQUAL_REWARDS = 5
"""Steps in a row without any difference between rewards before somebody is told."""


class Session(BaseSession[Learner, Measurement]):
    """One process's work on one run: the learner, the folder, who watches, and the held-out prompts.

    Attributes:
        start_reward: held-out reward before training.
        newest: the last measurement on the way and its step.
    """

    def __init__(self, learner: Learner, run: Run, observer: Observer, held_out: Sequence[Prompt]) -> None:
        super().__init__(learner, run, observer)
        self.held_out = held_out
        self.start_reward = 0.0
        self.newest: tuple[int, Measurement] | None = None
        self._history: list[Mapping[str, Any]] = []

    def _steps(self, before: Measurement) -> None:
        self.start_reward = sum(sample.reward for sample in before.samples) / len(before.samples)
        self._history = list(self.run.rows("metrics.jsonl"))
        if self.learner.recipe.guards.stop and self.learner.step == 0:
            # What is kept where nothing better comes before the alarm.
            self._save()
        if not self._stop_row():
            super()._steps(before)
        self._take_back()

    def step(self) -> Mapping[str, Any]:
        report = train_step(self.learner)
        self.run.append("samples.jsonl", report.samples)
        self.run.append("metrics.jsonl", [report.metrics])
        self._history.append(report.metrics)
        return report.metrics

    def state(self) -> dict[str, Any]:
        return state_of(self.learner)

    def write(self, folder: Path) -> None:
        write_learner(self.learner, folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        restore(self.learner, checkpoint)

    def spare(self) -> int | None:
        """Where an alarm may stop the run, the best model from before it."""
        return self._best(self.learner.step + 1)[0] if self.learner.recipe.guards.stop else None

    def held_out_size(self) -> str:
        return f"{len(self.held_out)} held-out prompts"

    def summarised(self, found: Measurement) -> Mapping[str, float]:
        return summary(found, bleu_tokenize=self.learner.recipe.evaluation.bleu_tokenize)

    def read(self, text: str) -> Measurement:
        return Measurement.from_json(text)

    def written(self, found: Measurement) -> str:
        return found.to_json()

    def _measured(self, when: str) -> Measurement:
        if when == "after" and self.newest and self.newest[0] == self.learner.step:
            found = self.newest[1]
            self.run.put("evaluation/after.json", self.written(found))
            return found
        return super()._measured(when)

    def measure(self) -> Measurement:
        recipe, learner = self.learner.recipe, self.learner
        found = measure(
            learner.policy,
            learner.sampler,
            learner.scorer,
            self.held_out,
            sampling=recipe.sampling.params,
            samples_per_prompt=recipe.evaluation.samples_per_prompt,
            seed=(recipe.seed, HELD_OUT_SEED, 0),
            metrics=learner.metrics,
            better={section.part: section.better for section in recipe.evaluation.metrics},
            observer=self.observer,
            policy_version=learner.step,
        )
        if isinstance(learner.policy.reference, Releasable):
            # Training may never ask it again, and its memory is better spent on the step.
            learner.policy.reference.release()
        return found

    def over(self, before: Measurement) -> bool:
        """Measures where this step is due, says what the guards see, and whether the run ends for it."""
        stop = self.learner.recipe.guards.stop
        alarms = self._warn_of(self._history)
        if not (alarms and stop):
            alarms |= self._held_out_on_the_way(before)
        if not (alarms and stop):
            return False
        step = self.learner.step
        best, reward = self._best(step)
        text = (
            f"stopped after step {step} of {self.learner.recipe.steps} for an alarm; the model of step {best} is kept, "
            f"whose held-out reward of {reward:.3g} was the highest before it"
        )
        self.run.append("warnings.jsonl", [{"step": step, "kind": "stop", "text": text, "kept": best}])
        self.observer.message(text, level="warning")
        return True

    def _best(self, until: int) -> tuple[int, float]:
        """The step below ``until`` with the highest held-out reward, the start included, and that reward."""
        rewards = {0: self.start_reward}
        rewards |= {row["step"]: row["reward"] for row in self.run.rows("held_out.jsonl") if row["step"] < until}
        best = max(rewards, key=rewards.__getitem__)
        return best, rewards[best]

    def _held_out_on_the_way(self, before: Measurement) -> dict[str, str]:
        """The periodic held-out measurement, where this step is due one and has none yet, and what the guards say of it.

        Not after the last step, which the measurement "after" follows, unless that step's model may be taken back.
        """
        learner, recipe = self.learner, self.learner.recipe
        step, every, stop = learner.step, recipe.evaluation.every, recipe.guards.stop
        last = step == recipe.steps
        if not every or step == 0 or (last and not stop) or (step % every and not last):
            return {}
        row = next((row for row in self.run.rows("held_out.jsonl") if row["step"] == step), None)
        if row is None:
            found = self.measure()
            self.newest = (step, found)
            # The alarms go into the row: a run that is killed here finds them again.
            alarms = self._held_out_alarms(before, found) if recipe.guarded or stop else {}
            row = {"step": step, **self.summarised(found)}
            row |= {"alarms": alarms} if alarms else {}
            self.run.append("held_out.jsonl", [row])
        found_alarms: dict[str, str] = row.get("alarms", {})
        for key, text in found_alarms.items():
            self._warn(step, f"held-out {key}", text)
        if stop and not found_alarms and row["reward"] > self._best(step)[1]:
            self._save()
        return found_alarms

    def _held_out_alarms(self, before: Measurement, now: Measurement) -> dict[str, str]:
        return guard_alarms(self._compared(before, now), **self._limits())

    def _compared(self, before: Measurement, now: Measurement) -> dict[str, dict[str, Any]]:
        recipe = self.learner.recipe
        settings = recipe.evaluation
        return compare(
            before, now, resamples=settings.resamples, seed=recipe.seed, bleu_tokenize=settings.bleu_tokenize
        )  # fmt: skip

    def _limits(self) -> dict[str, Any]:
        """What the guards take for an alarm."""
        recipe, guards = self.learner.recipe, self.learner.recipe.guards
        return {
            "guards": recipe.guarded, "drop": guards.diversity_drop, "metric_drop": guards.metric_drop,
            "length_drift": guards.length_drift,
        }  # fmt: skip

    def _stop_row(self) -> dict[str, Any] | None:
        return next((row for row in self.run.rows("warnings.jsonl") if row.get("kind") == "stop"), None)

    def _take_back(self) -> None:
        """Where the guards stopped the run: gives the learner and the folder the model that was kept."""
        stopped = self._stop_row()
        if stopped is None:
            return
        kept = next((found for found in self.run.checkpoints() if found.step == stopped["kept"]), None)
        if kept is None:
            raise InputError(
                f"{self.run.folder}/checkpoints/step-{stopped['kept']}, which the guards kept, is gone: start a new run"
            )
        restore(self.learner, kept)
        self.run.choose_model(kept)

    def conclude(self, before: Measurement, after: Measurement) -> dict[str, dict[str, Any]]:
        evaluation = self._compared(before, after)
        self.run.put("evaluation.json", json_text(evaluation))
        for number, text in enumerate(evaluation_alarms(evaluation, **self._limits())):
            self._warn(self.logged, f"evaluation {number}", text)
        return evaluation

    def _warn_of(self, history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Says what the steps so far give reason to say; returns the alarms, by kind."""
        if not history:
            return {}
        recipe, step = self.learner.recipe, history[-1]["step"]
        guards = recipe.guards
        found = {
            "diversity": diversity_alarm(history, drop=guards.diversity_drop, window=guards.window),
            "length": length_alarm(history, drift=guards.length_drift, window=guards.window),
        }
        for part in (key.removeprefix("reward/") for key in recipe.guarded if key.startswith("reward/")):
            found[f"guard {part}"] = part_alarm(history, part, drop=guards.metric_drop, window=guards.window)
        alarms = {kind: text for kind, text in found.items() if text}
        for kind, text in alarms.items():
            self._warn(step, kind, text)
        recent = history[-EQUAL_REWARDS:]
        if len(recent) == EQUAL_REWARDS and all(row["reward/std"] == 0 for row in recent):
            text = f"every sample of the last {EQUAL_REWARDS} steps had the same reward, so these steps learnt nothing"
            self._warn(step, "equal rewards", text)
        for gate in (key.removeprefix("gate/") for key in recent[-1] if key.startswith("gate/")):
            if len(recent) == EQUAL_REWARDS and all(row.get(f"gate/{gate}") == 0 for row in recent):
                text = (
                    f"no sample of the last {EQUAL_REWARDS} steps reached the gate of '{gate}', so no other reward gave "
                    f"credit; its mean in the last of them was {recent[-1][f'reward/{gate}']:.3g}: lower gate, or fine-tune "
                    "first (burnish sft)"
                )
                self._warn(step, f"gate {gate}", text)
        return alarms

    def _warn(self, step: int, kind: str, text: str) -> None:
        """Says it once for each kind: said at each step it would bury everything else."""
        if all(row.get("kind") != kind for row in self.run.rows("warnings.jsonl")):
            self.run.append("warnings.jsonl", [{"step": step, "kind": kind, "text": text}])
            self.observer.message(text, level="warning")
