"""The toy task: four characters, one sentence to learn, and every number known by hand (see ``burnish verify``)."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.errors import InputError
from burnish.types import Prompt


class Toy:
    """One empty prompt whose correct answer is 我爱你。

    Args:
        prompts: copies of the prompt on each side, so that held-out intervals can be computed.
        answer: the correct answer, with the full stop that ends it.
    """

    def __init__(self, *, prompts: int = 16, answer: str = "我爱你。") -> None:
        if prompts < 1:
            raise InputError(f"task.prompts = {prompts}: a task needs at least one prompt")
        self.prompts = prompts
        self.answer = answer

    def train(self) -> Sequence[Prompt]:
        return [Prompt(f"toy/train/{index}", "", self.answer) for index in range(self.prompts)]

    def evaluation(self) -> Sequence[Prompt]:
        return [Prompt(f"toy/held-out/{index}", "", self.answer) for index in range(self.prompts)]
