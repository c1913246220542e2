"""The kinds of rows that supervised learning reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from burnish.data.splits import digest, near_copy_families
from burnish.types import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation: the assistant's messages are learnt, the others are read.

    Attributes:
        unit: the digest of the prompt, or its family of near-copies. Rows of one unit share a side of the split, and
            are one unit of the statistics.
        opening: the text by which near-copies are detected, here and in the other kinds: the prompt if there is one.
    """

    messages: tuple[Message, ...]
    unit: str

    @property
    def first_answer(self) -> int:
        """The index of the assistant's first message."""
        return next(index for index, message in enumerate(self.messages) if message.role == "assistant")

    @property
    def opening(self) -> str:
        return "\n".join(message.content for message in self.messages[: self.first_answer])


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt and the completion that is learnt. Plain text has an empty prompt."""

    prompt: str
    completion: str
    unit: str

    @property
    def opening(self) -> str:
        return self.prompt or self.completion


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of a prompt; ``margin`` is by how much a reward model should score the chosen one higher."""

    prompt: str
    chosen: str
    rejected: str
    unit: str
    margin: float | None = None

    @property
    def opening(self) -> str:
        return self.prompt or self.chosen


@dataclass(frozen=True, slots=True)
class LabelledCompletion:
    """A completion with a label: desirable or not."""

    prompt: str
    completion: str
    desirable: bool
    unit: str

    @property
    def opening(self) -> str:
        return self.prompt or self.completion


@dataclass(frozen=True, slots=True)
class ConversationPair:
    """Two continuations of a conversation, each of which begins with the assistant's message."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    unit: str
    margin: float | None = None

    @property
    def opening(self) -> str:
        return "\n".join(message.content for message in self.prompt)


@dataclass(frozen=True, slots=True)
class LabelledConversation:
    """A continuation of a conversation with a label: desirable or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    unit: str

    @property
    def opening(self) -> str:
        return "\n".join(message.content for message in self.prompt)


TrainingRow = (
    Conversation | PromptCompletion | PreferencePair | LabelledCompletion | ConversationPair | LabelledConversation
)


CONVERSATIONS = (Conversation, ConversationPair, LabelledConversation)
"""The kinds of rows that go through the chat template."""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be used: where it is in the source ("line 7"), and why."""

    position: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a source.

    Attributes:
        rows: the usable rows, in the source's order.
        repeats: number of rows equal to an earlier one, which is kept once.
        origin: the file or data set, for messages.
        positions: the position of each row in the source; empty if it has none.
        held_out: for each row, whether it belongs to the source's own held-out side; None if it has none.
    """

    rows: tuple[TrainingRow, ...]
    broken: tuple[BrokenRow, ...] = ()
    repeats: int = 0
    origin: str = ""
    positions: tuple[str, ...] = ()
    held_out: tuple[bool, ...] | None = None


def unrepeated(rows: Sequence[TrainingRow]) -> tuple[tuple[TrainingRow, ...], int]:
    """Return the rows without exact repeats, and the number of repeats."""
    unique = tuple(dict.fromkeys(rows))
    return unique, len(rows) - len(unique)


def with_families(rows: Sequence[TrainingRow]) -> tuple[TrainingRow, ...]:
    """Return the rows with the family of near-copies of their prompts as the unit, so that it shares a side."""
    families = near_copy_families((row.unit, (row.opening,), row.unit) for row in rows)
    return tuple(replace(row, unit=families[row.unit]) for row in rows)


def rows_digest(rows: Sequence[TrainingRow]) -> str:
    """Return the digest of rows by which a resumed run notices that its data changed."""
    return digest(*map(_recorded, rows))


def _recorded(row: TrainingRow) -> str:
    """Return a row as text. The form is fixed, with the names of version 0.1: run folders hold digests of it."""
    if isinstance(row, Conversation):
        turns = ", ".join(map(_recorded_message, row.messages))
        return f"Dialogue(turns=({turns}), unit={row.unit!r})"
    if isinstance(row, ConversationPair | LabelledConversation):
        return repr(row)
    kind = {PromptCompletion: "Text", PreferencePair: "Pair", LabelledCompletion: "Judged"}[type(row)]
    return kind + repr(row).removeprefix(type(row).__name__)


def _recorded_message(message: Message) -> str:
    thoughts = f", reasoning={message.reasoning!r}" if message.reasoning else ""
    weight = "" if message.learnt else ", learnt=False"
    extra = f", extra={message.extra!r}" if message.extra else ""
    return f"Turn(role={message.role!r}, content={message.content!r}{thoughts}{weight}{extra})"
