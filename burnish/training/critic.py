"""The critic of PPO: a model of how much reward is still to come, trained beside the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.algorithms.credit import generalised_advantages, whitened
from burnish.algorithms.losses import value_loss
from burnish.algorithms.ops import padded
from burnish.protocols import ValueModel
from burnish.recipe.algorithm import CriticSection
from burnish.types import Microbatch


@dataclass(slots=True)
class Critic:
    """A value model with its own optimizer: nothing of it is shared with the policy, so neither loss needs a factor.

    Attributes:
        loss: of the update that is going on, summed over its microbatches.
    """

    model: ValueModel
    optimizer: torch.optim.Optimizer
    settings: CriticSection
    loss: float = 0.0

    def begin(self) -> None:
        """Starts an update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = 0.0

    def backward(self, batch: Microbatch) -> None:
        """Adds the gradient of one microbatch; token losses are weighted as the policy's are."""
        assert batch.old_values is not None
        assert batch.returns is not None
        values = self.model.values(batch.completions)
        loss = (batch.weights * value_loss(values, batch.old_values, batch.returns, self.settings.clip)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss += float(loss.detach())

    def clipped_norm(self, limit: float | None) -> float:
        """The norm of the gradient, which is then cut to the limit."""
        parameters = list(self.model.trainable().values())
        return float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))

    def move(self, rate: float) -> None:
        """The optimizer's step, at its multiple of the policy's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def token_credit(
    rewards: Tensor,
    penalties: Tensor,
    values: Tensor,
    lengths: Tensor,
    settings: CriticSection,
    gained: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Whitened advantages [T] and returns [T] by GAE (arXiv 1506.02438, equation 16; arXiv 1707.06347, equation 11).

    A text's reward comes with its last token; what the KL term takes, with the token that it is taken for.

    Args:
        rewards: [N], of whole texts.
        penalties: [T], taken from each token's reward.
        values: [T], V before each token, when the samples were drawn.
        gained: [T], what came with each token besides.
    Returns:
        Advantages of mean 0 and deviation 1 over the step's tokens, and, before that, A + V: what the values should be.
    """
    received = -penalties if gained is None else gained - penalties
    received[lengths.cumsum(0) - 1] += rewards
    rows, mask = padded(received, lengths)
    before, _ = padded(values, lengths)
    found = generalised_advantages(rows, before, mask, discount=settings.discount, trace=settings.trace)[mask]
    return whitened(found), found + values


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns): 1 is foreseen, 0 is no better than a constant; 0 where nothing varies."""
    spread = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0
