"""Which prompts or examples a step sees."""

from __future__ import annotations

import numpy as np


class Draw:
    """The places of what each step sees: an epoch is a new order of all, and steps read on where the last one ended.

    A function of seed and step alone, so a resumed run sees the same.
    """

    def __init__(self, count: int, per_step: int, seed: int) -> None:
        self.count, self.per_step, self.seed = count, per_step, seed
        self._orders: dict[int, np.ndarray] = {}

    def step(self, step: int) -> list[int]:
        """Those of a step, counted from 1."""
        places = range((step - 1) * self.per_step, step * self.per_step)
        return [int(self._order(place // self.count)[place % self.count]) for place in places]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # A small step needs two epochs at most; a long run must not keep them all.
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 1, epoch])))
            self._orders[epoch] = generator.permutation(self.count)
        return self._orders[epoch]
