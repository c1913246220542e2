"""The loop around the step: held-out measurement before and after, lines, checkpoints, guards, and taking a run up again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from burnish.checkpoints import restore, write_learner
from burnish.errors import BurnishError, InputError
from burnish.evaluation.held_out import Measurement, compare, measure, summary
from burnish.protocols import Observer, Releasable
from burnish.rewards.guards import diversity_alarm, evaluation_alarms, guard_alarms, length_alarm, part_alarm
from burnish.run import Run, json_text
from burnish.training import Learner, train_step
from burnish.types import Prompt

HELD_OUT_SEED = 1
"""Mixed into the seed of held-out samples. It does not change with the step, so before and after share their numbers."""

EQUAL_REWARDS = 5
"""Steps in a row without any difference between rewards before somebody is told."""


class Interrupted(BurnishError):
    """Somebody pressed Ctrl-C; the run folder is whole and says how to go on."""

    exit_status = 130


@dataclass(slots=True)
class Session:
    """One process's work on one run: the learner, the folder, who watches, and the held-out prompts."""

    learner: Learner
    run: Run
    observer: Observer
    held_out: Sequence[Prompt]
    logged: int = 0
    """The last step whose rows are on disk."""
    start_reward: float = 0.0
    """Held-out reward before training."""
    newest: tuple[int, Measurement] | None = None
    """The last measurement on the way and its step."""

    def work(self) -> dict[str, dict[str, Any]]:
        """Trains from where the folder stands to the last step, and measures. Returns the evaluation.

        Raises:
            Interrupted: on Ctrl-C, after a checkpoint.
            BurnishError: a step failed; the folder holds everything up to it.
        """
        self.logged = self._restore()
        try:
            with self.learner.interrupts:
                before = self._measured("before")
                self.start_reward = sum(sample.reward for sample in before.samples) / len(before.samples)
                self._steps(before)
                self._take_back()
                after = self._measured("after")
        except KeyboardInterrupt:
            raise Interrupted(self._stopped()) from None
        except BurnishError as error:
            raise self._failed(error) from error
        return self._conclude(before, after)

    def _steps(self, before: Measurement) -> None:
        recipe, learner = self.learner.recipe, self.learner
        self.observer.start(name=recipe.name, steps=recipe.steps, first_step=learner.step + 1)
        history = self.run.rows("metrics.jsonl")
        if recipe.guards.stop and learner.step == 0:
            # What is kept where nothing better comes before the alarm.
            self._save()
        if self._stop_row() or self._gamed(before, history):
            return
        while learner.step < recipe.steps:
            report = train_step(learner)
            self.run.append("samples.jsonl", report.samples)
            self.run.append("metrics.jsonl", [report.metrics])
            self.logged = learner.step
            learner.interrupts.release()
            history.append(report.metrics)
            self.observer.step(report.metrics)
            if learner.step % recipe.checkpoint.every == 0 or learner.step == recipe.steps:
                self._save()
            if self._gamed(before, history):
                return

    def _gamed(self, before: Measurement, history: Sequence[dict[str, Any]]) -> bool:
        """Measures where this step is due, says what the guards see, and whether the run ends for it."""
        stop = self.learner.recipe.guards.stop
        alarms = self._warn_of(history)
        if not (alarms and stop):
            alarms |= self._measure_on_the_way(before)
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

    def _measure_on_the_way(self, before: Measurement) -> dict[str, str]:
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
            found = self._measure()
            self.newest = (step, found)
            # The alarms go into the row: a run that is killed here finds them again.
            alarms = self._held_out_alarms(before, found) if recipe.guarded or stop else {}
            row = {"step": step, **summary(found, bleu_tokenize=recipe.evaluation.bleu_tokenize)}
            row |= {"alarms": alarms} if alarms else {}
            self.run.append("held_out.jsonl", [row])
        found_alarms: dict[str, str] = row.get("alarms", {})
        for key, text in found_alarms.items():
            self._warn(step, f"held-out {key}", text)
        if stop and not found_alarms and row["reward"] > self._best(step)[1]:
            self._save()
        return found_alarms

    def _held_out_alarms(self, before: Measurement, now: Measurement) -> dict[str, str]:
        recipe = self.learner.recipe
        settings, guards = recipe.evaluation, recipe.guards
        evaluation = compare(
            before, now, resamples=settings.resamples, seed=recipe.seed, bleu_tokenize=settings.bleu_tokenize
        )
        return guard_alarms(
            evaluation, guards=recipe.guarded, drop=guards.diversity_drop, metric_drop=guards.metric_drop,
            length_drift=guards.length_drift,
        )  # fmt: skip

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

    def _restore(self) -> int:
        """Puts the learner where the newest checkpoint is and cuts the lines back to it; returns its step."""
        newest = next(reversed(self.run.checkpoints()), None)
        if newest:
            restore(self.learner, newest)
            if not (self.run.folder / "evaluation" / "before.json").exists():
                raise InputError(
                    f"{self.run.folder}/evaluation/before.json is gone, so nothing can be compared with it: start a new run"
                )
        self.run.cut_back(newest)
        if newest:
            self.observer.message(f"resumed after step {newest.step}")
        return self.learner.step

    def _stopped(self) -> str:
        """Saves what can be saved and says how to go on."""
        # Where a row could not be written the two disagree; then the last checkpoint is where the run goes on.
        if self.learner.step == self.logged > 0:
            self._save()
        saved = self.run.checkpoints()
        kept = f"saved after step {saved[-1].step}" if saved else "no step was finished"
        return f"stopped, {kept}; go on with: burnish train --resume {self.run.folder}"

    def _failed(self, error: BurnishError) -> BurnishError:
        """The same error, after what was learnt so far has been saved, with how to go on."""
        if "--resume" in str(error):
            return error
        with suppress(BurnishError):
            message = self._stopped().removeprefix("stopped, ")
            return type(error)(f"{error}\n{message}")
        return error

    def _save(self) -> None:
        """A checkpoint; where an alarm may stop the run, the best one from before it stays too."""
        learner = self.learner
        spare = self._best(learner.step + 1)[0] if learner.recipe.guards.stop else None
        state: dict[str, Any] = {"baseline": learner.baseline, "kl_coefficient": learner.kl_coefficient}
        if learner.prompt_baselines:
            state["prompt_baselines"] = learner.prompt_baselines
        self.run.save_checkpoint(
            learner.step, state, lambda folder: write_learner(learner, folder), learner.recipe.checkpoint.keep, spare
        )

    def _measured(self, when: str) -> Measurement:
        """The held-out measurement of that name, from the folder where it was made already."""
        name = f"evaluation/{when}.json"
        path = self.run.folder / name
        if when == "before" and path.exists():
            return Measurement.from_json(path.read_text(encoding="utf-8"))
        if when == "after" and self.newest and self.newest[0] == self.learner.step:
            found = self.newest[1]
        else:
            self.observer.message(f"measuring {len(self.held_out)} held-out prompts {when} training")
            found = self._measure()
        self.run.put(name, found.to_json())
        return found

    def _measure(self) -> Measurement:
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

    def _conclude(self, before: Measurement, after: Measurement) -> dict[str, dict[str, Any]]:
        recipe = self.learner.recipe
        settings = recipe.evaluation
        evaluation = compare(
            before, after, resamples=settings.resamples, seed=recipe.seed, bleu_tokenize=settings.bleu_tokenize
        )
        self.run.put("evaluation.json", json_text(evaluation))
        guards = recipe.guards
        alarms = evaluation_alarms(
            evaluation, guards=recipe.guarded, drop=guards.diversity_drop, metric_drop=guards.metric_drop,
            length_drift=guards.length_drift,
        )  # fmt: skip
        for number, text in enumerate(alarms):
            self._warn(self.logged, f"evaluation {number}", text)
        return evaluation

    def _warn_of(self, history: Sequence[dict[str, Any]]) -> dict[str, str]:
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
        return alarms

    def _warn(self, step: int, kind: str, text: str) -> None:
        """Says it once for each kind: said at each step it would bury everything else."""
        if all(row.get("kind") != kind for row in self.run.rows("warnings.jsonl")):
            self.run.append("warnings.jsonl", [{"step": step, "kind": kind, "text": text}])
            self.observer.message(text, level="warning")
