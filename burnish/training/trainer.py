"""What every run has in common, whatever a step of it is: measurements before and after, lines on disk, checkpoints, Ctrl-C,
and taking a run up again. ``loop`` and ``supervised.session`` say what a step and a measurement are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer, Trainable, ValueModel
from burnish.run.folder import Checkpoint, Run
from burnish.run.interrupts import Interrupted, Interrupts


class Learning(Protocol):
    """What a session needs of a learner: its state is the policy, the optimizer, ``step`` and what its session adds."""

    recipe: Any
    policy: Any
    optimizer: torch.optim.Optimizer
    step: int
    interrupts: Interrupts


L = TypeVar("L", bound=Learning)
M = TypeVar("M")


class BaseSession(ABC, Generic[L, M]):
    """One process's work on one run: L learns, and M is what a measurement finds.

    Attributes:
        logged: the last step whose rows are on disk.
    """

    def __init__(self, learner: L, run: Run, observer: Observer) -> None:
        self.learner, self.run, self.observer = learner, run, observer
        self.logged = 0

    @abstractmethod
    def step(self) -> Mapping[str, Any]:
        """Makes one step and writes its rows; returns that for metrics.jsonl."""

    @abstractmethod
    def measure(self) -> M:
        """Measures the held-out side as the policy is now."""

    @abstractmethod
    def summarised(self, found: M) -> Mapping[str, float]:
        """Metric -> value."""

    @abstractmethod
    def read(self, text: str) -> M:
        """What ``written`` wrote."""

    @abstractmethod
    def written(self, found: M) -> str:
        """A measurement as JSON, every float to the last bit."""

    @abstractmethod
    def held_out_size(self) -> str:
        """What is measured, for the reader: "40 held-out prompts"."""

    @abstractmethod
    def conclude(self, before: M, after: M) -> dict[str, dict[str, Any]]:
        """Compares, and writes what was found."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides tensors and the step."""
        return {}

    def write(self, folder: Path) -> None:
        """Fills a checkpoint folder with tensors."""
        write_learner(self.learner, folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts the learner where the checkpoint was taken, bit for bit."""
        restore(self.learner, checkpoint)

    def begin(self) -> None:
        """Before anything is restored; may refuse to go on."""

    def over(self, before: M) -> bool:
        """Before the first step and after each: what is due then, and whether the run ends here."""
        self._measure_on_the_way()
        return False

    def spare(self) -> int | None:
        """A step whose checkpoint stays, however old."""
        return None

    def work(self) -> dict[str, dict[str, Any]]:
        """Trains from where the folder stands to the last step, and measures. Returns the evaluation.

        Raises:
            Interrupted: on Ctrl-C, after a checkpoint.
            BurnishError: a step failed; the folder holds everything up to it.
        """
        self.logged = self._restored()
        try:
            with self.learner.interrupts:
                before = self._measured("before")
                self._steps(before)
                after = self._measured("after")
        except KeyboardInterrupt:
            raise Interrupted(f"stopped, {self._saved()}") from None
        except BurnishError as error:
            raise self._failed(error) from error
        return self.conclude(before, after)

    def _steps(self, before: M) -> None:
        recipe, learner = self.learner.recipe, self.learner
        self.observer.start(name=recipe.name, steps=recipe.steps, first_step=learner.step + 1)
        if self.over(before):
            return
        while learner.step < recipe.steps:
            metrics = self.step()
            self.logged = learner.step
            learner.interrupts.release()
            self.observer.step(metrics)
            if learner.step % recipe.checkpoint.every == 0 or learner.step == recipe.steps:
                self._save()
            if self.over(before):
                return

    def _measure_on_the_way(self) -> None:
        """The periodic measurement, where this step is due one and has none yet; not after the last step, which the
        measurement "after" follows."""
        step, every = self.learner.step, self.learner.recipe.evaluation.every
        if not every or step == 0 or step % every or step == self.learner.recipe.steps:
            return
        if all(row["step"] != step for row in self.run.rows("held_out.jsonl")):
            self.run.append("held_out.jsonl", [{"step": step, **self.summarised(self.measure())}])

    def _measured(self, when: str) -> M:
        """The measurement of that name; that before training is read where it was made already."""
        name = f"evaluation/{when}.json"
        path = self.run.folder / name
        if when == "before" and path.exists():
            return self.read(path.read_text(encoding="utf-8"))
        self.observer.message(f"measuring {self.held_out_size()} {when} training")
        found = self.measure()
        self.run.put(name, self.written(found))
        return found

    def _restored(self) -> int:
        """Puts the learner where the newest checkpoint is and cuts the lines back to it; returns its step."""
        self.begin()
        newest = next(reversed(self.run.checkpoints()), None)
        if newest:
            self.restore(newest)
            if not (self.run.folder / "evaluation" / "before.json").exists():
                raise InputError(
                    f"{self.run.folder}/evaluation/before.json is gone, so nothing can be compared with it: start a new run"
                )
        self.run.cut_back(newest)
        if newest:
            self.observer.message(f"resumed after step {newest.step}")
        return self.learner.step

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
        keep = self.learner.recipe.checkpoint.keep
        self.run.save_checkpoint(self.learner.step, self.state(), self.write, keep, self.spare())


def write_learner(learner: Learning, folder: Path) -> None:
    """Fills a checkpoint folder: ``model/`` and ``optimizer.safetensors``."""
    learner.policy.save(folder / "model")
    write_optimizer(learner.optimizer, learner.policy.trainable(), folder)


def restore(learner: Learning, checkpoint: Checkpoint) -> None:
    """Gives the learner the checkpoint's weights, optimizer state and step.

    Raises:
        InputError: the checkpoint is damaged or belongs to another recipe.
    """
    with readable(checkpoint.folder):
        learner.policy.load(checkpoint.folder / "model")
        restore_optimizer(learner.optimizer, learner.policy.trainable(), checkpoint.folder)
    learner.step = checkpoint.step


@contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Raises InputError, with what to do, where something of a checkpoint's folder cannot be read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{checkpoint} cannot be read ({error}); delete it to go on from an older checkpoint"
        ) from error


def write_optimizer(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Writes the optimizer's state into ``optimizer.safetensors``, by the names of the parameters."""
    tensors = {}
    for name, parameter in trainable.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, folder / "optimizer.safetensors")


def restore_optimizer(optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Takes over what ``write_optimizer`` wrote. Raises InputError where it is of other parameters."""
    for key, value in load_file(folder / "optimizer.safetensors").items():
        kind, _, name = key.partition("/")
        if name not in trainable:
            raise InputError(f"{folder}: optimizer state of '{name}', which this policy does not have")
        parameter = trainable[name]
        # Fused AdamW needs its step counter on the parameter's device too.
        optimizer.state[parameter][kind] = value.to(parameter.device)


def optimizer_for(
    policy: Trainable | ValueModel, settings: Any, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the trainable parameters.

    Args:
        rates: learning rates of their own for some parameters, by name; they follow the schedule in proportion.
    """
    own = rates or {}
    trainable = policy.trainable()
    groups: list[dict[str, Any]] = [{"params": [tensor for name, tensor in trainable.items() if name not in own]}]
    groups += [
        {"params": [trainable[name]], "factor": rate / settings.learning_rate} for name, rate in own.items()
    ]  # fmt: skip
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        # One pass over the moments instead of a dozen, and no temporary copies.
        fused=True,
    )
