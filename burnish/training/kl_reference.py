"""The KL term: how strongly, and towards which reference, a policy is held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.algorithms.kl import KL_ESTIMATORS, adapted_coefficient
from burnish.protocols import LogprobModel, Policy
from burnish.recipe.algorithm import KL
from burnish.run.folder import Checkpoint
from burnish.types import Completion

WEIGHTS = "anchor.safetensors"
"""File of a checkpoint: the weights of a reference that is no longer the model that training started from."""


@dataclass(frozen=True, slots=True)
class PolicySnapshot:
    """A policy as it was after some step; its weights replace the current ones when evaluated."""

    policy: Policy
    weights: Mapping[str, Tensor]

    @classmethod
    def take(cls, policy: Policy) -> PolicySnapshot:
        """Return a snapshot of the policy's current weights."""
        return cls(policy, {name: parameter.detach().clone() for name, parameter in policy.trainable().items()})

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [T] of the completions' tokens, without gradient."""
        parameters = self.policy.trainable()
        current = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.weights[name]
            return self.policy.token_logprobs(completions, temperature)
        finally:
            for name, parameter in parameters.items():
                parameter.data = current[name]


class KLTerm:
    """A KL penalty, in the loss or in the reward, whose coefficient and reference may move.

    Attributes:
        coefficient: the current weight; 0 switches the term off for the whole run.
        snapshot: the policy of an earlier step, once ``reset_every`` has replaced the first reference.
    """

    def __init__(self, settings: KL, policy: Policy) -> None:
        self.settings, self.policy = settings, policy
        self.coefficient = settings.coefficient
        self.active = settings.coefficient > 0
        self.in_loss = self.active and settings.where == "loss"
        self.snapshot: PolicySnapshot | None = None

    @property
    def reference(self) -> LogprobModel:
        """The model that the policy is held near."""
        return self.snapshot or self.policy.reference

    def estimate(self, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
        """Return the weighted per-token penalty [T]."""
        return self.coefficient * KL_ESTIMATORS[self.settings.estimator](logprobs, reference_logprobs)

    def reward_penalties(self, logprobs: Tensor, reference_logprobs: Tensor | None) -> Tensor:
        """Return what the term takes from each token's reward, [T]; zeros where it is part of the loss instead."""
        if reference_logprobs is None or not self.active or self.in_loss:
            return logprobs.new_zeros(len(logprobs))
        return self.estimate(logprobs, reference_logprobs)

    def finish_step(self, step: int, distance: float, *, samples: int) -> None:
        """Adapt the coefficient to the step's mean KL of whole completions (nats); replace a reference that is due.

        With a horizon of H samples the rate is N/H, without one the paper's 0.1.
        """
        settings = self.settings
        if settings.target is not None:
            rate = 0.1 if settings.horizon is None else samples / settings.horizon
            self.coefficient = adapted_coefficient(self.coefficient, distance, target=settings.target, rate=rate)
        if settings.reset_every is not None and step % settings.reset_every == 0:
            self.snapshot = PolicySnapshot.take(self.policy)

    def metrics(self, distance: float) -> dict[str, float]:
        """Return the coefficient that this step used and the distance to the reference."""
        return {"kl/coefficient": self.coefficient, "kl/completion": distance} if self.active else {}

    def state(self) -> dict[str, Any]:
        return {"kl_coefficient": self.coefficient}

    def write(self, folder: Path) -> None:
        if self.snapshot is not None:
            save_file({name: value.contiguous() for name, value in self.snapshot.weights.items()}, folder / WEIGHTS)

    def restore(self, checkpoint: Checkpoint) -> None:
        # Checkpoints written before the coefficient could move have none.
        coefficient = float(checkpoint.state.get("kl_coefficient", self.coefficient))
        every, snapshot = self.settings.reset_every, None
        if every is not None and checkpoint.step >= every:
            parameters, weights = self.policy.trainable(), load_file(checkpoint.folder / WEIGHTS)
            moved = {name: value.to(parameters[name].device) for name, value in weights.items()}
            snapshot = PolicySnapshot(self.policy, moved)
        self.coefficient, self.snapshot = coefficient, snapshot
