"""Row formats of supervised learning: from a file's columns to training rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from burnish.data.exchanges import Text, in_chat, join, read_text, unlearnt
from burnish.data.fields import field, has_field
from burnish.data.files import json_type
from burnish.data.messages import read_conversation, read_transcript
from burnish.data.rows import (
    CONVERSATIONS,
    Conversation,
    ConversationPair,
    LabelledCompletion,
    LabelledConversation,
    PreferencePair,
    PromptCompletion,
    TrainingRow,
)  # fmt: skip
from burnish.data.splits import digest
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.types import Message

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Format -> required columns; a row without a chosen format has the first whose columns it has."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {"pairs": ("prompt", "margin"), "completion": ("input",)}
"""Format -> optional columns."""
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "messages": ("conversations", "conversation"), "prompt": ("instruction", "conversations", "messages"),
    "completion": ("output",),
}  # fmt: skip
"""Column -> its names in common data sets (ShareGPT, Alpaca), in the order in which they are tried."""


class RowFormat:
    """A format of ``COLUMNS`` with the file's names for its columns, given as the format's name -> the file's.

    Args:
        format: if empty, each row has the first format whose columns it has.
        columns: the file's names, or the paths of fields, as in ``reward_model.ground_truth``.
        chat: whether prompts and answers that are plain text go through the chat template.
        system: a system message at the beginning of each conversation.

    Raises InputError if the format is unknown, or ``columns`` names a column that it does not have.
    """

    def __init__(self, format: str, columns: Mapping[str, str], *, chat: bool = False, system: str = "") -> None:
        if format and format not in COLUMNS:
            raise InputError(f"data.format = '{format}'{nearest(format, COLUMNS)}: write one of {', '.join(COLUMNS)}")
        formats = [format] if format else list(COLUMNS)
        known = dict.fromkeys(name for one in formats for name in COLUMNS[one] + OPTIONAL.get(one, ()))
        for name, column in columns.items():
            if name not in known or not isinstance(column, str):
                raise InputError(
                    f"data.columns: '{name}'{nearest(name, known)}: "
                    + (f"format '{format}' has the columns " if format else "the columns are ")
                    + f"{', '.join(known)}; give the file's name of each as text"
                )
        self.format, self.columns, self.chat, self.system = format, dict(columns), chat, system

    def row(self, record: Mapping[str, Any]) -> TrainingRow:
        """Return the training row of a record of the file. Raises ValueError with the reason if it cannot be used."""
        format = self.format or self._format(record)
        values: dict[str, Any] = {}
        for name in COLUMNS[format]:
            column = self._column(record, name)
            values[name] = field(record, column or self.columns.get(name, name))
        for name in OPTIONAL.get(format, ()):
            column = self._column(record, name)
            if name in self.columns:
                values[name] = field(record, self.columns[name])
            elif column is not None and (name != "input" or self._column(record, "prompt") == "instruction"):
                values[name] = field(record, column)
        if format == "pairs" and "prompt" not in values and _has_other_texts(record, values):
            field(record, self.columns.get("prompt", "prompt"))
        make: Callable[[Mapping[str, Any]], TrainingRow] = getattr(self, f"_{format}")
        row = make(values)
        if self.system and not isinstance(row, CONVERSATIONS):
            raise ValueError(
                "system is a message of a conversation, and this row is plain text: set chat = true, or remove system"
            )
        _check_text(row)
        return row

    def _format(self, record: Mapping[str, Any]) -> str:
        for format, names in COLUMNS.items():
            if all(self._column(record, name) is not None for name in names):
                return format
        listed = ", ".join(list(map(str, record))[:8])
        raise ValueError(f"its columns are {listed}: set data.format, and data.columns for other names")

    def _column(self, record: Mapping[str, Any], name: str) -> str | None:
        """Return the column or path that a record has for a name of the format; None if it has none."""
        names = (self.columns[name],) if name in self.columns else (name, *SYNONYMS.get(name, ()))
        return next((one for one in names if has_field(record, one)), None)

    def _chat(self, values: Mapping[str, Any]) -> Conversation:
        messages = self._read("messages", lambda: read_conversation(values["messages"]))
        if self.system:
            messages = (Message("system", self.system), *(one for one in messages if one.role != "system"))
        return _conversation(messages)

    def _completion(self, values: Mapping[str, Any]) -> TrainingRow:
        prompt, (answer,) = self._exchange(values, "completion")
        if isinstance(prompt, str) and isinstance(answer, str):
            return PromptCompletion(prompt, answer, digest(prompt or answer))
        return _conversation((*unlearnt(_messages(prompt)), *_messages(answer)))

    def _text(self, values: Mapping[str, Any]) -> PromptCompletion:
        text = values["text"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(self._wrong("text", text))
        return PromptCompletion("", text, digest(text))

    def _pairs(self, values: Mapping[str, Any]) -> TrainingRow:
        margin = self._margin(values.get("margin"))
        prompt, (chosen, rejected) = self._exchange(values, "chosen", "rejected")
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same text")
        if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
            return PreferencePair(prompt, chosen, rejected, digest(prompt or chosen), margin)
        asked = _messages(prompt)
        return ConversationPair(asked, _messages(chosen), _messages(rejected), _unit(asked), margin)

    def _labelled(self, values: Mapping[str, Any]) -> TrainingRow:
        label = values["label"]
        if isinstance(label, str) and label.lower() in ("true", "false"):  # CSV has only text
            label = label.lower() == "true"
        if not isinstance(label, bool):
            raise ValueError(f"'{self.columns.get('label', 'label')}' is {str(label)[:40]}, not true or false")
        prompt, (answer,) = self._exchange(values, "completion")
        if isinstance(prompt, str) and isinstance(answer, str):
            return LabelledCompletion(prompt, answer, label, digest(prompt or answer))
        asked = _messages(prompt)
        return LabelledConversation(asked, _messages(answer), label, _unit(asked))

    def _exchange(self, values: Mapping[str, Any], *names: str) -> tuple[Text, tuple[Text, ...]]:
        """Return the prompt and the answers of a row, all of them plain text or all of them messages."""
        answers: list[Text] = []
        for name in names:
            answer = self._read(name, lambda name=name: read_text(values[name]))  # type: ignore[misc]
            if answer is None or (isinstance(answer, str) and not answer.strip()):
                raise ValueError(self._wrong(name, values[name]))
            answers.append(answer)
        prompt: Text | None = None
        if "prompt" in values:
            prompt = self._read("prompt", lambda: read_text(values["prompt"]))
            if prompt is None:
                raise ValueError(self._wrong("prompt", values["prompt"]))
        more = values.get("input")
        if more is not None and not (isinstance(more, str) and isinstance(prompt, str)):
            raise ValueError(f"'{self.columns.get('input', 'input')}' and its prompt are not both text")
        if more and more.strip():
            prompt = f"{prompt}\n\n{more}"
        asked, replies = join(prompt, answers)
        if self.chat or (self.system and not isinstance(asked, str)):
            return in_chat(asked, replies, self.system)
        return asked, replies

    def _read(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except ValueError as error:
            raise ValueError(f"'{self.columns.get(name, name)}': {error}") from error

    def _wrong(self, name: str, value: Any) -> str:
        empty = isinstance(value, str)
        kind = "empty" if empty else f"{json_type(value)}, not text" + (" or messages" if name != "text" else "")
        return f"'{self.columns.get(name, name)}' is {kind}"

    def _margin(self, value: Any) -> float | None:
        if value in (None, ""):
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"'{self.columns.get('margin', 'margin')}' is {str(value)[:40]}, not a finite number")
        return number


def _has_other_texts(record: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether two plain texts have a column beside them that may be their prompt, so that none should be guessed."""
    answers = [value for value in values.values() if isinstance(value, str)]
    others = (value for value in record.values() if isinstance(value, str) and value not in answers)
    return len(answers) > 1 and not read_transcript(answers[0]) and any(others)


def _conversation(messages: tuple[Message, ...]) -> Conversation:
    first = next((index for index, message in enumerate(messages) if message.role == "assistant"), None)
    if first is None:
        raise ValueError("no assistant message, so nothing to learn")
    if first == 0:
        raise ValueError("the assistant speaks first; put the user's message before it")
    if not any(message.learnt for message in messages if message.role == "assistant"):
        raise ValueError("each assistant message has weight 0, so nothing to learn")
    return Conversation(messages, _unit(messages[:first]))


def _unit(prompt: tuple[Message, ...]) -> str:
    return digest(*(message.content for message in prompt))


def _messages(text: Text) -> tuple[Message, ...]:
    assert not isinstance(text, str), "join returns messages for all or for none"
    return text


def _check_text(row: TrainingRow) -> None:
    """Raise ValueError if a text is not UTF-8, such as half a surrogate pair."""
    try:
        json.dumps(astuple(row), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("not UTF-8 text") from None
