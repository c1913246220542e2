"""The task and the reward of a benchmark: exactly the prompts of an order, and the share of its letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from burnish.benchmark.protocol import Order
from burnish.types import Completion, Prompt


class Ordered:
    """The prompts of an order file; the held-out side, which nobody measures here, is one prompt of its own."""

    def __init__(self, *, path: str = "") -> None:
        self.order = Order.read(Path(path))

    def train(self) -> Sequence[Prompt]:
        return [Prompt(f"bench/{place}", text) for place, text in enumerate(self.order.prompts)]

    def evaluation(self) -> Sequence[Prompt]:
        return [Prompt("bench/held-out", self.order.prompts[0])]


def letter_share(completion: Completion, *, letter: str = "e") -> float:
    """As ``Order.reward``."""
    return completion.text.count(letter) / max(1, len(completion.text))
