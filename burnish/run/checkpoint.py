"""Checkpoints of a learner: weights, optimizer state, and parts such as baselines and a critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.errors import BurnishError, InputError, StateLost
from burnish.protocols import ParameterOptimizer, SavesRounded, Trainable
from burnish.run.folder import Checkpoint, Run
from burnish.run.manifest import MANIFEST
from burnish.run.proof import checkpoint_damage
from burnish.run.shards import SHARDS, read_shards

EXACT = "weights.safetensors"
"""Weights bit for bit, where ``model/`` has them rounded to policy.save_dtype."""


@runtime_checkable
class Stateful(Protocol):
    """A part of a learner that a checkpoint keeps besides weights and optimizer."""

    def state(self) -> dict[str, Any]:
        """Return the part's entries of ``state.json``."""

    def write(self, folder: Path) -> None:
        """Write tensors into the checkpoint folder."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Read the entries and the tensors back."""


class Checkpointed(Protocol):
    """A learner that can be saved and restored."""

    @property
    def policy(self) -> Trainable: ...

    @property
    def optimizer(self) -> ParameterOptimizer: ...

    @property
    def parts(self) -> Sequence[Stateful]:
        """Everything besides policy and optimizer."""

    step: int


class PolicyState(Protocol):
    """Weights and optimizer state, in this process or in several."""

    def broken_weight(self) -> str | None:
        """Return the name of a weight that is not finite, None if all are."""

    def written(self, folder: Path) -> Iterator[None]:
        """Fill a checkpoint folder, and yield between its files; the largest come first."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore both from what any state has written."""


class WholeState:
    """The state of a policy that this process has, as ``optimizer.safetensors`` and ``model/``."""

    def __init__(self, learner: Checkpointed) -> None:
        self.learner = learner
        # A table of logits has minus infinity for tokens that cannot follow.
        weights = learner.policy.trainable().items()
        self._infinite = {name for name, weight in weights if not weight.detach().sum(dtype=torch.float64).isfinite()}

    def broken_weight(self) -> str | None:
        for name, parameter in self.learner.policy.trainable().items():
            values = parameter.detach()
            if name in self._infinite:
                broken = not bool((values < math.inf).all())
            else:  # one pass without a copy; a sum may also overflow
                broken = not (values.sum(dtype=torch.float64).isfinite() or values.isfinite().all())
            if broken:
                return name
        return None

    def written(self, folder: Path) -> Iterator[None]:
        policy = self.learner.policy
        write_optimizer(self.learner.optimizer, policy.trainable(), folder)
        yield
        if isinstance(policy, SavesRounded) and policy.saves_rounded:
            exact = {name: parameter.detach().contiguous() for name, parameter in policy.trainable().items()}
            save_file(exact, folder / EXACT)
        yield
        policy.save(folder / "model")

    def restore(self, checkpoint: Checkpoint) -> None:
        policy, optimizer, shards = self.learner.policy, self.learner.optimizer, checkpoint.folder / SHARDS
        if shards.is_dir():
            read_shards(shards, optimizer, policy.trainable(), alone=True)
            return
        load_exact_weights(policy, checkpoint.folder)
        read_optimizer(optimizer, policy.trainable(), checkpoint.folder)


class Checkpointer:
    """Saves a learner into a run folder, where the newest ``keep`` checkpoints stay, and restores it bit for bit.

    Args:
        state: where the learner's policy and optimizer are; None: in the learner.

    Attributes:
        spared: functions that return a step whose checkpoint must stay, however old, or None.
    """

    def __init__(self, run: Run, learner: Checkpointed, keep: int, state: PolicyState | None = None) -> None:
        self.run, self.learner, self.keep = run, learner, keep
        self.state = state or WholeState(learner)
        self.spared: list[Callable[[], int | None]] = []

    def save(self) -> None:
        """Save the learner after its current step.

        Raises BurnishError if a weight is not finite, so that no good checkpoint is replaced, and what
        ``Run.save_checkpoint`` raises.
        """
        if (name := self.state.broken_weight()) is not None:
            saved = self.run.checkpoints()
            last = f"; the checkpoint of step {saved[-1].step} stays the last" if saved else ""
            raise BurnishError(
                f"step {self.learner.step}: the weight '{name}' is not finite, so the model is not saved{last}. Resuming "
                "would fail in the same way: start again with a lower optimizer.learning_rate"
            )
        state: dict[str, Any] = {}
        for part in self.learner.parts:
            state |= part.state()
        spared = {step for spare in self.spared if (step := spare()) is not None}
        self.run.save_checkpoint(self.learner.step, state, self.written, self.keep, spared)

    def write(self, folder: Path) -> None:
        """Fill a checkpoint folder: ``model/``, ``optimizer.safetensors`` and the files of the parts."""
        for _ in self.written(folder):
            pass

    def written(self, folder: Path) -> Iterator[None]:
        """Fill a checkpoint folder, and yield between its files; the largest come first."""
        files = self.state.written(folder)
        next(files)
        yield
        for part in self.learner.parts:
            part.write(folder)
        yield from files

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the learner. Raises InputError if the checkpoint is damaged or belongs to another recipe."""
        if checkpoint.state.get("step") != checkpoint.step:
            raise InputError(
                f"{checkpoint.folder}/state.json belongs to another step: delete the folder to resume from an older one"
            )
        if checkpoint.folder not in self.run.proved and (checkpoint.folder / MANIFEST).exists():
            for text in checkpoint_damage(self.run.folder, checkpoint, None):
                raise InputError(f"{text}: restore it, or delete {checkpoint.folder} to resume from an older one")
        try:
            for part in self.learner.parts:
                part.restore(checkpoint)
            self.state.restore(checkpoint)
        except (InputError, StateLost):
            raise
        except Exception as error:
            raise InputError(
                f"{checkpoint.folder} cannot be read ({error}); delete it to resume from an older checkpoint"
            ) from error
        self.learner.step = checkpoint.step


def load_exact_weights(policy: Trainable, folder: Path) -> None:
    """Load the weights of a checkpoint folder into a policy, bit for bit."""
    policy.load(folder / "model")
    if (folder / EXACT).is_file():
        parameters = policy.trainable()
        with torch.no_grad():
            for name, value in load_file(folder / EXACT).items():
                parameters[name].copy_(value)


def write_optimizer(optimizer: ParameterOptimizer, parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Write the optimizer's state to ``optimizer.safetensors``, keyed by parameter name."""
    tensors = {
        f"{key}/{name}": torch.as_tensor(value).contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(tensors, folder / "optimizer.safetensors")


def read_optimizer(optimizer: ParameterOptimizer, parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Read what ``write_optimizer`` wrote. Raise InputError if it belongs to other parameters."""
    path = folder / "optimizer.safetensors"
    read: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise InputError(f"{folder}: has optimizer state for '{name}', a parameter that this policy does not have")
        # A moment has its parameter's shape, a counter of steps has none.
        if value.shape not in (torch.Size(), parameters[name].shape):
            shapes = f"{list(value.shape)}, but '{name}' has {list(parameters[name].shape)}"
            raise InputError(f"{path}: '{key}' has shape {shapes}: it belongs to another model's run")
        read.setdefault(name, {})[kind] = value
    kinds = {kind for state in read.values() for kind in state}
    for name, state in read.items():
        if lost := sorted(kinds - state.keys()):
            raise InputError(f"{path}: '{lost[0]}/{name}' is missing: the file is damaged")
    for name, state in read.items():
        # Fused AdamW needs its step counter on the parameter's device too.
        optimizer.state[parameters[name]] |= {kind: value.to(parameters[name].device) for kind, value in state.items()}
