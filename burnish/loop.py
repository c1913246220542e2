"""The loop around the step: held-out measurement before and after, lines, checkpoints, guards, and taking a run up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from burnish.errors import BurnishError, InputError
from burnish.evaluation.held_out import Measurement, compare, measure, summary
from burnish.protocols import Observer, Policy
from burnish.rewards.guards import diversity_alarm, evaluation_alarms
from burnish.run import Checkpoint, Run, json_text
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

    def work(self) -> dict[str, dict[str, Any]]:
        """Trains from where the folder stands to the last step, and measures. Returns the evaluation.

        Raises:
            Interrupted: on Ctrl-C, after a checkpoint.
            BurnishError: a step failed; the folder holds everything up to it.
        """
        logged = self._restore()
        try:
            before = self._measured("before")
            logged = self._steps(logged)
            after = self._measured("after")
        except KeyboardInterrupt:
            raise Interrupted(self._stopped(logged)) from None
        return self._conclude(before, after)

    def _steps(self, logged: int) -> int:
        recipe = self.learner.recipe
        self.observer.start(name=recipe.name, steps=recipe.steps, first_step=logged + 1)
        history = self.run.rows("metrics.jsonl")
        try:
            while logged < recipe.steps:
                report = train_step(self.learner)
                metrics = report.metrics
                if recipe.evaluation.every and report.metrics["step"] % recipe.evaluation.every == 0:
                    found = summary(self._measure(), bleu_tokenize=recipe.evaluation.bleu_tokenize)
                    metrics = {**metrics, **{f"held_out/{name}": value for name, value in found.items()}}
                self.run.append("samples.jsonl", report.samples)
                self.run.append("metrics.jsonl", [metrics])
                logged = self.learner.step
                history.append(metrics)
                self._warn_of(history)
                self.observer.step(metrics)
                if logged % recipe.checkpoint.every == 0 or logged == recipe.steps:
                    self._save()
        except KeyboardInterrupt:
            raise Interrupted(self._stopped(logged)) from None
        return logged

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

    def _stopped(self, logged: int) -> str:
        """Saves what can be saved and says how to go on."""
        # Between the optimizer's step and its row the two disagree; then the last checkpoint is where the run goes on.
        if self.learner.step == logged > 0:
            self._save()
        saved = self.run.checkpoints()
        kept = f"saved after step {saved[-1].step}" if saved else "no step was finished"
        return f"stopped, {kept}; go on with: burnish train --resume {self.run.folder}"

    def _save(self) -> None:
        learner = self.learner
        state = {"baseline": learner.baseline}
        self.run.save_checkpoint(
            learner.step, state, lambda folder: write_learner(learner, folder), learner.recipe.checkpoint.keep
        )

    def _measured(self, when: str) -> Measurement:
        """The held-out measurement of that name, from the folder where it was made already."""
        name = f"evaluation/{when}.json"
        path = self.run.folder / name
        if when == "before" and path.exists():
            return Measurement.from_json(path.read_text(encoding="utf-8"))
        self.observer.message(f"measuring {len(self.held_out)} held-out prompts {when} training")
        found = self._measure()
        self.run.put(name, found.to_json())
        return found

    def _measure(self) -> Measurement:
        recipe, learner = self.learner.recipe, self.learner
        return measure(
            learner.policy,
            learner.sampler,
            learner.scorer,
            self.held_out,
            sampling=recipe.sampling.params,
            samples_per_prompt=recipe.evaluation.samples_per_prompt,
            seed=(recipe.seed, HELD_OUT_SEED, 0),
            observer=self.observer,
            policy_version=learner.step,
        )

    def _conclude(self, before: Measurement, after: Measurement) -> dict[str, dict[str, Any]]:
        recipe = self.learner.recipe
        settings = recipe.evaluation
        evaluation = compare(
            before, after, resamples=settings.resamples, seed=recipe.seed, bleu_tokenize=settings.bleu_tokenize
        )
        self.run.put("evaluation.json", json_text(evaluation))
        for text in evaluation_alarms(evaluation, drop=recipe.guards.diversity_drop):
            self._warn(recipe.steps, text)
        return evaluation

    def _warn_of(self, history: Sequence[dict[str, Any]]) -> None:
        guards = self.learner.recipe.guards
        alarm = diversity_alarm(history, drop=guards.diversity_drop, window=guards.window)
        # Once it is said it stands in the report; saying it at each step would bury everything else.
        if alarm and not self.run.rows("warnings.jsonl"):
            self._warn(history[-1]["step"], alarm)
        recent = history[-EQUAL_REWARDS:]
        if len(recent) == EQUAL_REWARDS and all(row["reward/std"] == 0 for row in recent):
            text = f"every sample of the last {EQUAL_REWARDS} steps had the same reward, so these steps learnt nothing"
            if all(row["text"] != text for row in self.run.rows("warnings.jsonl")):
                self._warn(history[-1]["step"], text)

    def _warn(self, step: int, text: str) -> None:
        if all((row["step"], row["text"]) != (step, text) for row in self.run.rows("warnings.jsonl")):
            self.run.append("warnings.jsonl", [{"step": step, "text": text}])
        self.observer.message(text, level="warning")


def write_learner(learner: Learner, folder: Path) -> None:
    """Fills a checkpoint folder: ``model/`` and ``optimizer.safetensors``."""
    learner.policy.save(folder / "model")
    tensors = {}
    for name, parameter in learner.policy.trainable().items():
        for key, value in learner.optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, folder / "optimizer.safetensors")


def restore(learner: Learner, checkpoint: Checkpoint) -> None:
    """Gives the learner the checkpoint's weights, optimizer state and position.

    Raises:
        InputError: the checkpoint is damaged or belongs to another recipe.
    """
    state = checkpoint.state
    try:
        baseline = float(state["baseline"])
        learner.policy.load(checkpoint.folder / "model")
        tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{checkpoint.folder} cannot be read ({error}); delete it to go on from an older checkpoint"
        ) from error
    places = {name: learner.optimizer.state[parameter] for name, parameter in learner.policy.trainable().items()}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in places:
            raise InputError(f"{checkpoint.folder}: optimizer state of '{name}', which this policy does not have")
        places[name][kind] = value
    learner.step = checkpoint.step
    learner.baseline = baseline


def optimizer_for(policy: Policy, settings: Any) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the policy's trainable parameters."""
    return torch.optim.AdamW(
        list(policy.trainable().values()),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
