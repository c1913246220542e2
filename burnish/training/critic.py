"""PPO's critic: a value model with its own optimizer, trained beside the policy."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.algorithms.credit_assignment import generalised_advantages, whiten
from burnish.algorithms.losses import value_loss
from burnish.algorithms.ops import pad_by_sequence
from burnish.errors import InputError
from burnish.protocols import ParameterOptimizer, ValueModel
from burnish.recipe.algorithm import CriticSection
from burnish.run.checkpoint import read_optimizer, write_optimizer
from burnish.run.folder import Checkpoint
from burnish.training.optimizer import clip_gradient, refuse_non_finite, set_learning_rate
from burnish.types import Microbatch

FOLDER = "critic"
"""Folder of a checkpoint that holds the critic and its optimizer."""


@dataclass(slots=True)
class Critic:
    """A value model with its own optimizer. It shares nothing with the policy, so neither loss needs a factor."""

    model: ValueModel
    optimizer: ParameterOptimizer
    settings: CriticSection
    loss: float = 0.0
    """Of the current update, summed over its microbatches."""
    _updates: list[tuple[float, float]] = field(default_factory=list)

    def begin_update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = 0.0

    def backward(self, batch: Microbatch) -> None:
        """Add the gradient of one microbatch; token losses have the policy loss's weights."""
        assert batch.old_values is not None
        assert batch.returns is not None
        values = self.model.values(batch.completions)
        loss = (batch.weights * value_loss(values, batch.old_values, batch.returns, self.settings.clip)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss += float(loss.detach())

    def check_gradient(self, step: int, update: int, limit: float | None) -> None:
        """Clip the gradient's norm to ``limit``. Raises BurnishError where loss or gradient is not finite."""
        norm = clip_gradient(self.model.trainable().values(), limit)
        refuse_non_finite(step, self.loss, norm, update=update, of="critic's ")
        self._updates.append((self.loss, norm))

    def apply_update(self, rate: float) -> None:
        """Step the optimizer, at ``settings.rate`` times the policy's learning rate."""
        set_learning_rate(self.optimizer, self.settings.rate * rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def pop_metrics(self) -> dict[str, float]:
        """Return mean loss and gradient norm of the updates since the last call."""
        losses, norms = zip(*self._updates, strict=True)
        self._updates = []
        return {"critic/loss": sum(losses) / len(losses), "critic/grad_norm": sum(norms) / len(norms)}

    def state(self) -> dict[str, Any]:
        return {}

    def write(self, folder: Path) -> None:
        """Write weights and optimizer state into a checkpoint folder."""
        target = folder / FOLDER
        target.mkdir()
        weights = {name: parameter.detach().contiguous() for name, parameter in self.model.trainable().items()}
        save_file(weights, target / "model.safetensors")
        write_optimizer(self.optimizer, self.model.trainable(), target)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Read what ``write`` wrote. Raises InputError where it belongs to another model."""
        folder, parameters = checkpoint.folder / FOLDER, self.model.trainable()
        saved = load_file(folder / "model.safetensors")
        shapes = {name: weight.shape for name, weight in parameters.items()}
        if {name: weight.shape for name, weight in saved.items()} != shapes:
            raise InputError(f"{folder} holds the critic of another policy: it belongs to another recipe's run")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])
        read_optimizer(self.optimizer, parameters, folder)
        self._updates = []


def token_credit(
    rewards: Tensor,
    penalties: Tensor,
    values: Tensor,
    lengths: Tensor,
    settings: CriticSection,
    earned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return whitened advantages [T] and returns [T] by GAE (arXiv 1506.02438, eq. 16; arXiv 1707.06347, eq. 11).

    Advantages have mean 0 and deviation 1 over the step's tokens; returns, the values' targets, are A + V unwhitened.

    Args:
        rewards: [N], of whole completions; each comes with the last token.
        penalties: [T], taken from each token's reward.
        values: [T], V before each token, when the samples were drawn.
        earned: [T], rewards that came with single tokens.
    """
    received = -penalties if earned is None else earned - penalties
    received[lengths.cumsum(0) - 1] += rewards
    rows, mask = pad_by_sequence(received, lengths)
    value_rows, _ = pad_by_sequence(values, lengths)
    advantages = generalised_advantages(rows, value_rows, mask, discount=settings.discount, trace=settings.trace)[mask]
    return whiten(advantages), advantages + values


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - var(returns - values) / var(returns); 0 where the returns do not vary."""
    spread = float(returns.var(correction=0))
    if spread < sys.float_info.min:  # the squares of tiny returns round to zero
        return 0.0
    return 1 - float((returns - values).var(correction=0)) / spread
