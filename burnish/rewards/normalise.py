"""What a part's numbers are among those of the same prompt, or of the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from burnish.algorithms.shaping import by_rank
from burnish.types import Completion

Among = Literal["group", "batch", "rank", "running"]
"""What a part is compared with in training: see ``burnish.rewards.combine.Part.normalise``."""


def among_companions(among: Among, values: np.ndarray, completions: Sequence[Completion]) -> np.ndarray:
    """Values [N] as their ranks among the completions of each prompt, or of mean 0 and standard deviation 1 among those or
    among all."""
    groups: dict[str, list[int]] = {}
    for place, completion in enumerate(completions):
        groups.setdefault("" if among == "batch" else completion.prompt.id, []).append(place)
    result = np.zeros_like(values)
    for places in groups.values():
        found = values[places]
        if among == "rank":
            result[places] = by_rank(torch.from_numpy(found)).numpy()
        # Equal values are left at 0: their mean may miss them by a rounding error, which the division would blow up.
        elif found.min() < found.max():
            result[places] = (found - found.mean()) / found.std()
    return result
