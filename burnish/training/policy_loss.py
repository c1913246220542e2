"""The policy loss of a microbatch: the algorithm's token losses, with KL and entropy terms, added up by weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from burnish.algorithms.importance import importance_weights
from burnish.algorithms.ops import log_ratio
from burnish.algorithms.presets import Preset
from burnish.recipe.algorithm import Algorithm
from burnish.training.kl_reference import KLTerm
from burnish.types import Microbatch, TokenStats


@dataclass(frozen=True, slots=True)
class MicrobatchLoss:
    """The loss of a microbatch and the quantities that its metrics need; only ``loss`` has a gradient.

    Attributes:
        loss: the weighted sum of the token losses.
        logprobs, old_logprobs: [T], float64, of the policy now and before the step's first update.
        full_logprobs: [T], float64, of the policy now under the full softmax, as the reference's are.
        entropy: [T], nats.
        clipped: [T] bool each, the tokens whose ratio the loss clips from below and from above.
        importance: [T], the weights that correct for the sampler; 1 without a correction.
    """

    loss: Tensor
    logprobs: Tensor
    full_logprobs: Tensor
    old_logprobs: Tensor
    entropy: Tensor
    clipped: tuple[Tensor, Tensor]
    importance: Tensor

    def detached(self) -> MicrobatchLoss:
        """Return the same without a gradient."""
        return replace(self, loss=self.loss.detach())


class PolicyLoss:
    """Computes ``sum(weights * token_loss)`` of a microbatch, where ``weights`` count the whole update's tokens."""

    def __init__(self, preset: Preset, settings: Algorithm, kl: KLTerm) -> None:
        self.preset, self.kl = preset, kl
        self.entropy_bonus, self.correction = settings.entropy, settings.importance
        self.corrects_sampler = settings.importance.form not in (None, "none")
        self.needs_entropy_gradient = settings.entropy > 0
        self.trains_every_sample = kl.in_loss or settings.entropy > 0
        """Whether the loss is more than a multiple of the advantage."""

    def __call__(self, stats: TokenStats, batch: Microbatch) -> MicrobatchLoss:
        preset = self.preset
        logprobs = stats.logprobs.double()
        full = logprobs if stats.log_mass is None else logprobs + stats.log_mass.double()
        # With one update per step pi_old is the policy itself, and no extra pass computes it.
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        lengths = torch.tensor([len(completion.token_ids) for completion in batch.completions])
        ratio = log_ratio(logprobs, old, lengths, preset.ratio or "token")
        importance = importance_weights(
            old, batch.sampler_logprobs, lengths,
            correction=self.correction.form or "none", level=self.correction.level, cap=self.correction.limit,
            floor=self.correction.floor,
        )  # fmt: skip
        token_loss = importance * preset.loss(logprobs, ratio, batch.advantages, preset.limits)
        if self.kl.in_loss:
            assert batch.reference_logprobs is not None
            token_loss = token_loss + self.kl.estimate(full, batch.reference_logprobs)
        if self.entropy_bonus > 0:
            token_loss = token_loss - self.entropy_bonus * stats.entropy.double()
        clipped = preset.clipped(ratio.detach(), batch.advantages, preset.limits)
        loss = (batch.weights * token_loss).sum()
        return MicrobatchLoss(loss, logprobs.detach(), full.detach(), old, stats.entropy.detach(), clipped, importance)
