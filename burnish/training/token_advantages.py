"""Advantages a token, where rewards came with tokens and no critic says what they were to be expected."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.advantages import Baseline
from burnish.algorithms.credit import reward_to_go
from burnish.algorithms.ops import padded
from burnish.algorithms.presets import Preset
from burnish.algorithms.tokenwise import mean_to_come
from burnish.errors import BurnishError
from burnish.types import Scores


def split(scores: Scores) -> tuple[Tensor, Tensor | None]:
    """What whole completions earned [N], and what came with their tokens [T]; None where all came with the whole."""
    if scores.token_rewards is None:
        return torch.from_numpy(scores.total), None
    return torch.from_numpy(scores.token_rewards.per_completion), torch.from_numpy(
        np.concatenate(scores.token_rewards.per_token)
    )


def token_advantages(
    preset: Preset, whole: Tensor, gained: Tensor, lengths: Tensor, baseline: Baseline
) -> tuple[Tensor, Tensor]:
    """Advantages [T], and what a completion's tokens had still to come in the mean [P, G], which a moving baseline foresees.

    Args:
        whole: [P, G], for every token of a completion.
        gained: [T], for the token and those before it.
        lengths: [P*G].
    Raises:
        BurnishError: the algorithm has no advantages a token.
    """
    if preset.tokenwise is None:
        raise BurnishError(f"a reward came with tokens, and the algorithm cannot take that: {preset.coarse}")
    rows, mask = padded(gained, lengths)
    shape = (*whole.shape, mask.shape[-1])
    to_go = reward_to_go(rows).view(shape)
    found = preset.tokenwise(whole, to_go, mask.view(shape), baseline)
    return found.view(mask.shape)[mask], mean_to_come(whole, to_go, mask.view(shape))
