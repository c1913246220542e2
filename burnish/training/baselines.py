"""What the moving-baseline algorithm compares rewards with: a running mean of each prompt's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from burnish.types import Group

DECAY = 0.9
"""How much of a moving mean stays when new rewards come in."""


def of_prompts(groups: Sequence[Group], known: Mapping[str, float], otherwise: float) -> Tensor:
    """[P, 1], the moving mean of each prompt's earlier rewards; ``otherwise`` for a prompt that has none yet.

    Neither depends on the samples at hand, so the gradient stays unbiased (Williams 1992, section 4).
    """
    values = [known.get(group.prompt.id, otherwise) for group in groups]
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def remember(known: dict[str, float], groups: Sequence[Group], rewards: Tensor) -> None:
    """Moves the means of the prompts that were sampled, in place: b <- 0.9 b + 0.1 mean; at first the mean itself.

    Args:
        rewards: [P, G].
    """
    for group, mean in zip(groups, rewards.mean(-1).tolist(), strict=True):
        name = group.prompt.id
        known[name] = DECAY * known[name] + (1 - DECAY) * mean if name in known else mean
