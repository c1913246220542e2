"""The order in which prompts or examples are trained."""

from __future__ import annotations

import numpy as np


class PromptOrder:
    """The indices of the prompts or examples that each step trains: a new permutation of all per epoch.

    Each step continues where the last one ended. A function of seed and step alone, so a resumed run sees the same.
    """

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count, self.per_step, self.seed = count, per_step, seed
        self._permutations: dict[int, np.ndarray] = {}

    def step(self, step: int) -> list[int]:
        """Return the indices of a step, counted from 1."""
        positions = range((step - 1) * self.per_step, step * self.per_step)
        return [int(self._permutation(position // self.count)[position % self.count]) for position in positions]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # A small step needs at most two epochs; a long run must not keep them all.
            self._permutations = {key: order for key, order in self._permutations.items() if key == epoch - 1}
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 1, epoch])))
            self._permutations[epoch] = generator.permutation(self.count)
        return self._permutations[epoch]
