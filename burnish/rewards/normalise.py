"""Normalisation of a part's values among the completions of the same prompt or step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from burnish.algorithms.reward_shaping import rank_in_group, standardise
from burnish.types import Completion

Normalisation = Literal["group", "batch", "rank", "running"]
"""How a part's values are normalised in training.

"group", "batch" and "running" subtract the mean and divide by the standard deviation: those of the prompt's
completions, of the step's, or of all earlier steps'. If all values of a group or step are equal, they become 0. "rank"
is the rank among the prompt's completions, from -1 to 1.
"""


def normalise(by: Normalisation, values: np.ndarray, completions: Sequence[Completion]) -> np.ndarray:
    """Return values [N] normalised by "group", "batch" or "rank"."""
    groups: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        groups.setdefault("" if by == "batch" else completion.prompt.id, []).append(index)
    result = np.zeros_like(values)
    scale = rank_in_group if by == "rank" else standardise
    for indices in groups.values():
        result[indices] = scale(torch.from_numpy(values[indices])).numpy()
    return result
