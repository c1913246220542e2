"""The dialogue task: reply to a conversation. The conversations are the catalogue's ``chatterbot``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.catalogue import fetch
from burnish.data.splits import SplitTask, TaskExample, task_example
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.types import Message

if TYPE_CHECKING:
    from burnish.protocols import Observer

DATA = "chatterbot"
LANGUAGES = {"en": "english", "zh": "chinese"}
TURNS = ("conversations", "health", "sports")
"""Topics whose lists are turns. In the others, an answer is followed by alternative answers to the same question."""


class Dialogue(SplitTask):
    """Conversations up to a user's message, each with the true reply.

    A conversation of several turns gives a prompt for each of its replies, all on one side.

    Args:
        language: "en" (683 prompts) or "zh" (392; a poor machine translation).
        topics: topics of the data ("emotion", "trivia", ...); an empty list means all.
        system: a system message at the beginning of each conversation.
        history: the most messages before the last one.
        chat: whether prompts go through the model's chat template; else each line begins with its speaker.
        held_out_percent: share of the conversations, by hash, that training never sees.
    """

    name = "dialogue"

    def __init__(
        self,
        *,
        language: str = "en",
        topics: list[str] = [],  # noqa: B006 - read, never changed; a default is how an option's kind is known
        system: str = "",
        history: int = 6,
        chat: bool = True,
        held_out_percent: int = 25,
    ) -> None:
        super().__init__(held_out_percent)
        if language not in LANGUAGES:
            raise InputError(f"language = '{language}'{nearest(language, LANGUAGES)}: write en or zh")
        if history < 0 or history % 2:
            raise InputError(f"history = {history}: must be an even number, 0 or more, since speakers alternate")
        if system and not chat:
            raise InputError("system is a message of a chat, which needs chat = true")
        self.language, self.topics, self.system, self.history, self.chat = language, list(topics), system, history, chat

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        by_topic = conversations(self.language, offline=offline, observer=observer)
        for topic in self.topics:
            if topic not in by_topic:
                raise InputError(f"topics: '{topic}'{nearest(topic, by_topic)}: known are {', '.join(by_topic)}")
        topics = self.topics or list(by_topic)
        return [one for topic in topics for turns in by_topic[topic] for one in self._replies(topic, turns)]

    def _replies(self, topic: str, turns: Sequence[str]) -> Iterator[TaskExample]:
        for answer in range(1, len(turns), 2):
            before = turns[max(0, answer - 1 - self.history) : answer]
            past = [Message("assistant" if index % 2 else "user", text) for index, text in enumerate(before)]
            lines = "".join(f"{'A' if each.role == 'user' else 'B'}: {each.content}\n" for each in past)
            system = [Message("system", self.system)] if self.system else []
            yield task_example(
                f"dialogue/{self.language}",
                "\n".join(before),
                before[-1] if self.chat and len(before) == 1 else lines.rstrip("\n") if self.chat else f"{lines}B:",
                turns[answer],
                messages=(*system, *past) if self.chat else (),
                texts=(turns[0], "\n".join(before)),
                metadata={"topic": topic, "turns": len(before)},
            )


def conversations(
    language: str, *, offline: bool = False, observer: Observer | None = None
) -> dict[str, list[tuple[str, ...]]]:
    """Return topic -> conversations, in the data's order. Raises InputError or BurnishError as ``fetch``."""
    files = fetch(DATA, offline=offline, observer=observer)
    folder = f"/{LANGUAGES[language]}/"
    return {Path(name).stem: _read(path) for name, path in sorted(files.items()) if folder in f"/{name}"}


def _read(path: Path) -> list[tuple[str, ...]]:
    import yaml

    # BaseLoader keeps every value as text; other loaders read a plain "Yes" as True.
    loader: Any = yaml.BaseLoader
    rows = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["conversations"]
    conversations = []
    for row in rows:
        turns = [" ".join(str(turn).split()) for turn in row]
        turns = turns if path.stem in TURNS else turns[:2]
        if len(turns) > 1 and all(turns):
            conversations.append(tuple(turns))
    return conversations
