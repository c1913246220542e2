"""Refusal of samples that a policy has drawn from probabilities that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

from burnish.errors import BurnishError
from burnish.rewards.part import named_row
from burnish.types import Completion


def refuse_broken_samples(completions: Iterable[Completion], when: str) -> None:
    """Raise BurnishError if a sampled token's log-probability is not a number; ``when`` begins the message."""
    for completion in completions:
        if math.isnan(math.fsum(completion.sampler_logprobs)):
            raise BurnishError(
                f"{when}: the policy's probabilities are not finite, first on {named_row(completion)}: its weights "
                "diverged. Start again with a lower optimizer.learning_rate, or with optimizer.max_grad_norm"
            )
