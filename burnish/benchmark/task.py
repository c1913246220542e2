"""Task and reward of a benchmark: the prompts of a job, and the share of its letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from burnish.benchmark.protocol import BenchmarkJob
from burnish.types import Completion, Message, Prompt


class JobPrompts:
    """The prompts of a job file; the held-out side, which is not measured, is one further prompt."""

    def __init__(self, *, path: str = "") -> None:
        self.job = BenchmarkJob.read(Path(path))

    def train(self) -> Sequence[Prompt]:
        if self.job.questions:
            chats = [(Message("user", question),) for question in self.job.questions]
            return [Prompt(f"bench/{index}", chat[0].content, messages=chat) for index, chat in enumerate(chats)]
        return [Prompt(f"bench/{index}", text) for index, text in enumerate(self.job.prompts)]

    def evaluation(self) -> Sequence[Prompt]:
        return [replace(self.train()[0], id="bench/held-out")]


def letter_share(completion: Completion, *, letter: str = "e") -> float:
    """Return the share of the letter, as ``BenchmarkJob.reward``."""
    return completion.text.count(letter) / max(1, len(completion.text))
