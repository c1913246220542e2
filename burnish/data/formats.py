"""Row formats of supervised learning: from a file's columns to training rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from burnish.data.files import json_type
from burnish.data.rows import Conversation, LabelledCompletion, PreferencePair, PromptCompletion, TrainingRow
from burnish.data.splits import digest
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.types import Message, Role

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
    "pairs": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
}
"""Format -> required columns."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {"pairs": ("margin",)}
"""Format -> optional columns."""
ROLES: tuple[Role, ...] = get_args(Role)
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of an assistant's thoughts in a message."""
UNUSABLE = ("tool_calls", "function_call", "tool_call_id", "name", "audio", "images", "videos", "refusal", "prefix")
"""Keys of a message that chat templates read and that are not supported."""


class RowFormat:
    """A format of ``COLUMNS`` with the file's names for its columns, given as the format's name -> the file's.

    Raises InputError if the format is unknown, or ``columns`` names a column that it does not have.
    """

    def __init__(self, format: str, columns: Mapping[str, str]) -> None:
        if format not in COLUMNS:
            raise InputError(f"data.format = '{format}'{nearest(format, COLUMNS)}: write one of {', '.join(COLUMNS)}")
        known = COLUMNS[format] + OPTIONAL.get(format, ())
        for name, column in columns.items():
            if name not in known or not isinstance(column, str):
                raise InputError(
                    f"data.columns: '{name}'{nearest(name, known)}: format '{format}' has the columns "
                    f"{', '.join(known)}; give the file's name of each as text"
                )
        self.format = format
        self.columns = {name: columns.get(name, name) for name in known}

    def row(self, record: Mapping[str, Any]) -> TrainingRow:
        """Return the training row of a record of the file. Raises ValueError with the reason if it cannot be used."""
        for name in COLUMNS[self.format]:
            column = self.columns[name]
            if column not in record:
                listed = ", ".join(list(map(str, record))[:8])
                raise ValueError(f"no column '{column}'{nearest(column, record)}; it has {listed}")
        make: Callable[[Mapping[str, Any]], TrainingRow] = getattr(self, f"_{self.format}")
        return make({name: record[column] for name, column in self.columns.items() if column in record})

    def _chat(self, values: Mapping[str, Any]) -> Conversation:
        listed = values["messages"]
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"'{self.columns['messages']}' is not a list of messages")
        messages = tuple(read_message(one) for one in listed)
        first = next((index for index, message in enumerate(messages) if message.role == "assistant"), None)
        if first is None:
            raise ValueError("no assistant message, so nothing to learn")
        if first == 0:
            raise ValueError("the assistant speaks first; put the user's message before it")
        if not any(message.learnt for message in messages if message.role == "assistant"):
            raise ValueError("each assistant message has weight 0, so nothing to learn")
        return Conversation(messages, digest(*(message.content for message in messages[:first])))

    def _completion(self, values: Mapping[str, Any]) -> PromptCompletion:
        prompt = self._string(values, "prompt", empty=True)
        completion = self._string(values, "completion")
        return PromptCompletion(prompt, completion, digest(prompt or completion))

    def _text(self, values: Mapping[str, Any]) -> PromptCompletion:
        text = self._string(values, "text")
        return PromptCompletion("", text, digest(text))

    def _pairs(self, values: Mapping[str, Any]) -> PreferencePair:
        prompt = self._string(values, "prompt", empty=True)
        chosen, rejected = self._string(values, "chosen"), self._string(values, "rejected")
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same text")
        return PreferencePair(prompt, chosen, rejected, digest(prompt or chosen), self._margin(values.get("margin")))

    def _labelled(self, values: Mapping[str, Any]) -> LabelledCompletion:
        text = self._completion(values)
        if not isinstance(values["label"], bool):
            raise ValueError(f"'{self.columns['label']}' is {str(values['label'])[:40]}, not true or false")
        return LabelledCompletion(text.prompt, text.completion, values["label"], text.unit)

    def _margin(self, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"'{self.columns['margin']}' is {str(value)[:40]}, not a finite number")
        return float(value)

    def _string(self, values: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
        value = values[name]
        if not isinstance(value, str):
            raise ValueError(f"'{self.columns[name]}' is {json_type(value)}, not text")
        if not empty and not value.strip():
            raise ValueError(f"'{self.columns[name]}' is empty")
        return value


def read_message(value: Any) -> Message:
    """Return a message of a conversation as data sets write it.

    ``content`` is text or a list of text parts, ``reasoning_content`` (or ``reasoning``, ``thinking``) an assistant's
    thoughts, ``weight`` 0 or 1.

    Raises:
        ValueError: it cannot be used, or has a key whose meaning would be lost.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a message is {json_type(value)}, not an object with role and content")
    role, content = value.get("role"), _joined_parts(value.get("content"))
    if role not in ROLES:
        raise ValueError(f"role {str(role)[:40]!r}: known roles are {', '.join(ROLES)}")
    if unusable := [key for key in UNUSABLE if value.get(key)]:
        raise ValueError(
            f"a message has '{unusable[0]}', which is not supported: write it into content as the model does"
        )
    if not isinstance(content, str) or (role == "assistant" and not content.strip()):
        raise ValueError(f"a message of role '{role}' has no text as its content")
    thoughts = [value[key] for key in REASONING if value.get(key)]
    if thoughts and (role != "assistant" or not isinstance(thoughts[0], str)):
        raise ValueError(f"a message of role '{role}' has a reasoning_content that is not an assistant's text")
    weight = value.get("weight")
    if weight is not None and weight not in (0, 1):
        raise ValueError(f"a message has weight {str(weight)[:40]}: write 1 to learn it or 0 not to")
    return Message(role, content, thoughts[0] if thoughts else "", weight is None or bool(weight))


def _joined_parts(content: Any) -> Any:
    """Return the text of a message's content parts; other content as it is."""
    if not isinstance(content, list) or not content:
        return content
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else json_type(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a message has a content part of type '{kind}': only text can be used")
    return "".join(part["text"] for part in content)
