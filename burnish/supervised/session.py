"""One step of supervised learning, and the loop around it: held-out measurement before and after, lines, checkpoints, and
taking a run up again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from burnish.batching import TokenBudget
from burnish.checkpoints import restore_optimizer, write_optimizer
from burnish.errors import BurnishError, InputError
from burnish.interrupts import Interrupts
from burnish.loop import Interrupted
from burnish.metrics import Clock
from burnish.protocols import Observer, Policy
from burnish.run import Checkpoint, Run, json_text
from burnish.supervised.dataset import Dataset
from burnish.supervised.draw import Draw
from burnish.supervised.measurement import Seen, compare, from_json, summary, to_json
from burnish.supervised.objectives import Objective
from burnish.supervised.recipe import SupervisedRecipe
from burnish.training import learning_rate

MEASURED_AT_ONCE = 32
"""Examples between two signs of progress."""


@dataclass(slots=True)
class Learner:
    """Everything that a step needs; it changes the policy's weights, the optimizer's state and ``step``."""

    recipe: SupervisedRecipe
    policy: Policy
    objective: Objective
    data: Dataset
    optimizer: torch.optim.Optimizer
    step: int = 0
    interrupts: Interrupts = field(default_factory=Interrupts)


def train_step(learner: Learner) -> dict[str, Any]:
    """One update. Returns a row for metrics.jsonl.

    Raises:
        BurnishError: the loss or the gradient is not finite; the weights are as they were.
    """
    recipe, policy, settings = learner.recipe, learner.policy, learner.recipe.optimizer
    step, clock = learner.step + 1, Clock()
    draw = Draw(len(learner.data.train), recipe.batch.examples_per_step, recipe.seed)
    examples = [learner.data.train[place] for place in draw.step(step)]
    tokens = settings.tokens_per_microbatch
    budget = TokenBudget.fitting(policy.fitting_tokens) if tokens is None else TokenBudget(tokens, tokens)

    learner.optimizer.zero_grad(set_to_none=True)
    found = learner.objective.backward(policy, examples, budget)
    limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
    grad_norm = float(torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), limit))
    for name, value in (("loss", found["loss"]), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            raise BurnishError(
                f"step {step}: the {name} is {value}; the weights were left as they were. Resuming would come to the same: "
                "start again with a lower optimizer.learning_rate"
            )
    rate = learning_rate(recipe, step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.interrupts.hold()  # until the loop has written this step down: half a step is no state to save
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.step = step
    read = sum(text.size for example in examples for text in example.texts)
    return {"step": step, **found, "grad_norm": grad_norm, "learning_rate": rate, **clock.metrics(tokens=read)}


@dataclass(slots=True)
class Session:
    """One process's work on one run."""

    learner: Learner
    run: Run
    observer: Observer
    logged: int = 0
    """The last step whose row is on disk."""

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
                self._steps()
                after = self._measured("after")
        except KeyboardInterrupt:
            raise Interrupted(f"stopped, {self._saved()}") from None
        except BurnishError as error:
            raise self._failed(error) from error
        recipe = self.learner.recipe
        evaluation = compare(
            before, after, self.learner.objective.metrics, resamples=recipe.evaluation.resamples, seed=recipe.seed
        )
        self.run.put("evaluation.json", json_text(evaluation))
        return evaluation

    def _steps(self) -> None:
        recipe, learner = self.learner.recipe, self.learner
        self.observer.start(name=recipe.name, steps=recipe.steps, first_step=learner.step + 1)
        self._measure_on_the_way()
        while learner.step < recipe.steps:
            row = train_step(learner)
            self.run.append("metrics.jsonl", [row])
            self.logged = learner.step
            learner.interrupts.release()
            self.observer.step(row)
            if learner.step % recipe.checkpoint.every == 0 or learner.step == recipe.steps:
                self._save()
            self._measure_on_the_way()

    def _measure_on_the_way(self) -> None:
        """The periodic measurement, where this step is due one and has none yet; "after" is that of the last step."""
        step, every = self.learner.step, self.learner.recipe.evaluation.every
        if not every or step == 0 or step % every or step == self.learner.recipe.steps:
            return
        if all(row["step"] != step for row in self.run.rows("held_out.jsonl")):
            found = summary(self._measure(), self.learner.objective.metrics)
            self.run.append("held_out.jsonl", [{"step": step, **found}])

    def _measured(self, when: str) -> list[Seen]:
        """The measurement of that name; that before training is read where it was made already."""
        name = f"evaluation/{when}.json"
        path = self.run.folder / name
        if when == "before" and path.exists():
            return from_json(path.read_text(encoding="utf-8"))
        self.observer.message(f"measuring {len(self.learner.data.held_out)} held-out examples {when} training")
        found = self._measure()
        self.run.put(name, to_json(found))
        return found

    def _measure(self) -> list[Seen]:
        examples = self.learner.data.held_out
        found: list[Seen] = []
        for start in range(0, len(examples), MEASURED_AT_ONCE):
            part: Sequence[Any] = examples[start : start + MEASURED_AT_ONCE]
            with torch.no_grad():
                found += self.learner.objective.seen(self.learner.policy, part)
            self.observer.progress("evaluating", min(start + MEASURED_AT_ONCE, len(examples)), len(examples))
        return found

    def _restore(self) -> int:
        """Puts the learner where the newest checkpoint is and cuts the lines back to it; returns its step.

        Raises:
            InputError: the data are not what the run began with, or the checkpoint is damaged.
        """
        self._same_data()
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

    def _same_data(self) -> None:
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

    def _failed(self, error: BurnishError) -> BurnishError:
        """The same error, after what was learnt so far has been saved, with how to go on."""
        if "--resume" in str(error):
            return error
        with suppress(BurnishError):
            return type(error)(f"{error}\n{self._saved()}")
        return error

    def _saved(self) -> str:
        """Saves what can be saved and says how to go on."""
        # Where a row could not be written the two disagree; then the last checkpoint is where the run goes on.
        if self.learner.step == self.logged > 0:
            self._save()
        saved = self.run.checkpoints()
        kept = f"saved after step {saved[-1].step}" if saved else "no step was finished"
        return f"{kept}; go on with: {self.run.going_on}"

    def _save(self) -> None:
        learner = self.learner

        def write(folder: Path) -> None:
            learner.policy.save(folder / "model")
            write_optimizer(learner.optimizer, learner.policy.trainable(), folder)

        self.run.save_checkpoint(learner.step, {}, write, learner.recipe.checkpoint.keep)


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Puts a learner where the checkpoint was taken, bit for bit. Raises InputError where it is damaged."""
    if checkpoint.state.get("step") != checkpoint.step:
        raise InputError(
            f"{checkpoint.folder}/state.json is of another step; delete the folder to go on from an older one"
        )
    try:
        learner.policy.load(checkpoint.folder / "model")
        restore_optimizer(learner.optimizer, learner.policy.trainable(), checkpoint.folder)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{checkpoint.folder} cannot be read ({error}); delete it to go on from an older checkpoint"
        ) from error
    learner.step = checkpoint.step
