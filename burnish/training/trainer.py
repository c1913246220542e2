"""The loop around the step, shared by reinforcement and supervised learning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

from burnish.errors import BurnishError, ContractError, InputError, StateLost, one_line
from burnish.protocols import Observer
from burnish.recipe.schema import Job
from burnish.reports.page.html import write_report
from burnish.reports.wording import about
from burnish.run.checkpoint import Checkpointer
from burnish.run.folder import Run
from burnish.run.interrupts import Interrupted, Interrupts
from burnish.system.files import json_text
from burnish.training.best_model import BestModel
from burnish.training.time_left import RECENT, TimeLeft

REPORT_SHARE = 0.05
"""Share of a run's time that its reports may take: each reads all steps so far."""
WORTH_SAYING = 20.0
"""Seconds. A run that takes longer says so before its first step."""

M = TypeVar("M")


class Trainee(Protocol):
    """The learner's side of the loop: how far it is, and what holds Ctrl-C back within a step."""

    @property
    def interrupts(self) -> Interrupts: ...

    step: int


class Evaluator(Protocol[M]):
    """Measures the held-out side; M is a measurement."""

    @property
    def size(self) -> str:
        """What is measured, for the reader: "40 held-out prompts"."""

    def measure(self) -> M:
        """Measure the policy as it is now."""

    def guess_step(self, before: M) -> float | None:
        """Return the seconds that a step will take, from those of the measurement before training; None if unknown."""

    def summary(self, measurement: M) -> Mapping[str, float]:
        """Return metric -> value."""

    def directions(self, measurement: M) -> Mapping[str, str | None]:
        """Return metric -> "higher" or "lower", whichever is better, or None."""

    def compare(self, before: M, after: M) -> dict[str, dict[str, Any]]:
        """Return metric -> before, after, difference, interval, p_value, n."""

    def conclude(self, after: M) -> Mapping[str, Any]:
        """Return further files of the run, name -> JSON value."""

    def to_json(self, measurement: M) -> str:
        """Return a measurement as JSON, every float to the last bit."""

    def from_json(self, text: str) -> M: ...


class RunGuards(Generic[M]):
    """Guards that never go off. A subclass watches a run, and may end it and go back to an earlier model."""

    can_stop = False

    def begin(self, before: M) -> bool:
        """Before the first step of this process. Returns whether the run has been stopped already."""
        return False

    def after_step(self, row: Mapping[str, Any] | None) -> bool:
        """Watch a new row of metrics.jsonl (None: only the rows so far). Returns whether an alarm went off."""
        return False

    def examine(self, before: M, now: M) -> Mapping[str, Any]:
        """Return what a measurement on the way adds to its row of held_out.jsonl."""
        return {}

    def after_measurement(self, row: Mapping[str, Any]) -> bool:
        """Watch a row of held_out.jsonl. Returns whether an alarm went off."""
        return False

    def stop(self) -> None:
        """Record that the run ends here."""

    def end(self) -> None:
        """After the last step: where the run was stopped, go back to the model that was kept."""

    def after_evaluation(self, evaluation: Mapping[str, Mapping[str, Any]], after: M, step: int) -> None:
        """Watch the final comparison and measurement, made after the last logged step."""


class Trainer(Generic[M]):
    """One process's work on one run: steps, measurements, checkpoints.

    Args:
        step: makes one step, writes its rows, and returns the row of metrics.jsonl.
        measure_every: steps between two measurements on the way; 0 makes none.
    Attributes:
        logged: the last step whose rows are on disk.
    """

    def __init__(
        self,
        recipe: Job,
        learner: Trainee,
        step: Callable[[], Mapping[str, Any]],
        *,
        evaluator: Evaluator[M],
        checkpointer: Checkpointer,
        run: Run,
        observer: Observer,
        guards: RunGuards[M] | None = None,
        measure_every: int = 0,
    ) -> None:
        self.recipe, self.learner, self.step, self.measure_every = recipe, learner, step, measure_every
        self.evaluator, self.checkpointer, self.run, self.observer = evaluator, checkpointer, run, observer
        self.guards: RunGuards[M] = guards or RunGuards()
        self.best = BestModel(recipe.checkpoint.keep_best, run, checkpointer, skips_alarms=self.guards.can_stop)
        self.logged = 0
        self.time_left = TimeLeft(recipe.steps, recipe.checkpoint.every, measure_every)
        self._newest: tuple[int, M] | None = None
        self._reports, self._next_report = True, 0.0

    def train(self) -> dict[str, dict[str, Any]]:
        """Train from where the run folder is to the last step, and evaluate. Returns the evaluation.

        Raises:
            Interrupted: on Ctrl-C or SIGTERM, after a checkpoint was saved.
            BurnishError: a step failed; the folder holds everything up to it.
        """
        first = self.logged = self._resume()
        self.run.keep_extension()
        _ = self.run.recipe  # before somebody edits the file
        try:
            with self.learner.interrupts:
                before, after = self._train_to_the_end()
        except KeyboardInterrupt as stopped:
            raise Interrupted(f"stopped, {self._saved()}", stopped) from None
        except BurnishError as error:
            raise self._failed(error, first) from error
        evaluation = self.evaluator.compare(before, after)
        self.run.put("evaluation.json", json_text(evaluation))
        for name, value in self.evaluator.conclude(after).items():
            self.run.put(name, json_text(value))
        self.guards.after_evaluation(evaluation, after, self.logged)
        return evaluation

    def _train_to_the_end(self) -> tuple[M, M]:
        """Train to the end, from the newest checkpoint again whenever state is lost. Returns both measurements."""
        lost: StateLost | None = None
        while True:
            try:
                if lost is not None:
                    self._return(lost)
                return self._measured_and_trained()
            except StateLost as error:
                lost = error

    def _measured_and_trained(self) -> tuple[M, M]:
        """Measure, make the steps that are left, and measure. Returns both measurements."""
        before = self._measured("before")
        self.best.begin(self.evaluator.directions(before))
        if not self.guards.begin(before):
            self._step_to_the_end(before)
        self.guards.end()
        after = self._measured("after")
        if text := self.best.end(self.learner.step, self.evaluator.summary(after)):
            self.observer.message(text)
        return before, after

    def _return(self, lost: StateLost) -> None:
        """Go back to the newest checkpoint, from which the steps after it are made again; say so in warnings.jsonl."""
        if not self.run.checkpoints():
            raise BurnishError(f"{one_line(lost)}; there is no checkpoint yet") from lost
        reached = self.logged
        step = self.logged = self._resume()
        self._newest = None
        text = f"{one_line(lost)}; the run went back from step {reached} to its checkpoint of step {step}"
        self.run.append("warnings.jsonl", [{"step": step, "kind": "learner", "text": text}])
        self.observer.message(text, level="warning")
        self.learner.interrupts.release()

    def _step_to_the_end(self, before: M) -> None:
        recipe, learner = self.recipe, self.learner
        if learner.step < recipe.steps:
            self.observer.message(f"report: {self.run.folder / 'report.html'}, written at checkpoints")
            self._announce(before)
        self.observer.start(name=recipe.name, steps=recipe.steps, first_step=learner.step + 1)
        if self._ends_here(before, None):
            return
        while learner.step < recipe.steps:
            with self._timed("step"):
                metrics = self.step()
            self.logged = learner.step
            learner.interrupts.release()
            self.observer.step({**metrics, "time/left": self.time_left.left(learner.step)})
            if learner.step % recipe.checkpoint.every == 0 or learner.step == recipe.steps:
                with self._timed("checkpoint"):
                    self.checkpointer.save()
                    if learner.step == recipe.steps or time.monotonic() >= self._next_report:
                        self._report()
            if self._ends_here(before, metrics):
                return

    def _announce(self, before: M) -> None:
        """Report how long the steps and the measurements will take, where it is known and not short."""
        done, steps, expected = self.learner.step, self.recipe.steps, self.time_left
        earlier = [row["time/step"] for row in self.run.rows("metrics.jsonl")[-RECENT:] if "time/step" in row]
        expected.guess = median(earlier) if earlier else self.evaluator.guess_step(before)
        whole = expected.left(done)
        if expected.guess is None or whole is None or whole < WORTH_SAYING:
            return
        text = f"{steps - done} steps will take about {about(expected.guess * (steps - done))}"
        measuring = whole - expected.guess * (steps - done)
        self.observer.message(f"{text}, measuring {about(measuring)}" if measuring else f"{text}, without measuring")

    @contextmanager
    def _timed(self, work: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.time_left.add(work, time.monotonic() - begin)

    def _ends_here(self, before: M, row: Mapping[str, Any] | None) -> bool:
        """Return whether the guards end the run after the step of this row, after the measurement that is due."""
        alarm = self.guards.after_step(row)
        if not (alarm and self.guards.can_stop):
            alarm = self._measure_when_due(before) or alarm
        if not (alarm and self.guards.can_stop):
            return False
        self.guards.stop()
        return True

    def _measure_when_due(self, before: M) -> bool:
        """Make the periodic measurement where this step is due one and has none yet. Returns whether an alarm went off.

        None is due after the last step, which the measurement "after" follows, unless its model may be replaced.
        """
        step, every = self.learner.step, self.measure_every
        last = step == self.recipe.steps
        if not every or step == 0 or (last and not self.guards.can_stop) or (step % every and not last):
            return False
        row = next((row for row in self.run.rows("held_out.jsonl") if row["step"] == step), None)
        if row is None:
            with self._timed("measurement"):
                measurement = self.evaluator.measure()
            self._newest = (step, measurement)
            # Alarms go into the row, so that a run that is killed here finds them again.
            row = {"step": step, **self.evaluator.summary(measurement), **self.guards.examine(before, measurement)}
            self.run.append("held_out.jsonl", [row])
        self.best.after_measurement(row)
        return self.guards.after_measurement(row)

    def _measured(self, when: str) -> M:
        """Return the measurement "before" or "after" training; one that the run has made already is not repeated."""
        name = f"evaluation/{when}.json"
        path = self.run.folder / name
        if when == "before" and path.exists():
            return self.evaluator.from_json(path.read_text(encoding="utf-8"))
        if when == "after" and self._newest and self._newest[0] == self.learner.step:
            measurement = self._newest[1]
        else:
            self.observer.message(f"measuring {self.evaluator.size} {when} training")
            with self._timed("measurement"):
                measurement = self.evaluator.measure()
        self.run.put(name, self.evaluator.to_json(measurement))
        return measurement

    def _resume(self) -> int:
        """Restore the newest checkpoint and cut the run's lines back to it. Returns its step."""
        newest = next(reversed(self.run.checkpoints()), None)
        if newest:
            self.checkpointer.restore(newest)
            if not (self.run.folder / "evaluation" / "before.json").exists():
                raise InputError(
                    f"{self.run.folder}/evaluation/before.json is missing, so nothing can be compared: start a new run"
                )
        self.run.cut_back(newest)
        if newest:
            self.observer.message(f"resumed after step {newest.step}")
        return self.learner.step

    def _report(self) -> None:
        """Write the report of the run so far. A failure is a message, once: a report must not end a run."""
        begin = time.monotonic()
        try:
            write_report(self.run.folder)
        except Exception as error:
            if self._reports:
                self.observer.message(f"the report was not written: {error}")
            self._reports = False
        now = time.monotonic()
        self._next_report = now + (now - begin) / REPORT_SHARE

    def _failed(self, error: BurnishError, first: int) -> BurnishError:
        """Return the error with the command that resumes the run, after saving what was learnt.

        Resuming does not help after bad input before a step of this process, which began after step ``first``, or if a
        reward broke its contract before there was a checkpoint. After bad input, the folder that this process
        created is deleted if it has no checkpoint: it would block the corrected recipe.
        """
        if "--resume" in str(error):
            return error
        with suppress(BurnishError):
            recurs = isinstance(error, InputError | ContractError)
            learnt = self.run.checkpoints() or self.logged > 0
            begun = learnt if isinstance(error, ContractError) else self.logged > first
            if recurs and not begun:
                if isinstance(error, InputError) and not learnt and self.run.fresh:
                    self.run.discard()
                return error
            saved = self._saved("correct it, then " if recurs else "")
            return type(error)(f"{one_line(error)}\n{saved}")
        return error

    def _saved(self, first: str = "") -> str:
        """Save what can be saved, and return how to resume, and what to do ``first``."""
        # Where a row could not be written the two differ; then the run resumes from the last checkpoint.
        if self.learner.step == self.logged > 0:
            with suppress(StateLost):  # what is lost cannot be saved
                self.checkpointer.save()
        self._report()
        checkpoints = self.run.checkpoints()
        kept = f"saved after step {checkpoints[-1].step}" if checkpoints else "no step was finished"
        return f"{kept}; {first}resume with: {self.run.resume_command}"
