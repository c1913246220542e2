"""Prompts with answers: the shapes of ``prompt``, ``completion``, ``chosen`` and ``rejected`` in a row.

Each may be text, a list of messages, or one message. Answers that are whole conversations imply their prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from burnish.data.messages import read_conversation, read_message, read_transcript
from burnish.types import Message

Text = str | tuple[Message, ...]
"""Plain text, or messages that go through the chat template."""


def read_text(value: Any) -> Text | None:
    """Return a value as text or as messages; None if it is neither.

    Raises:
        ValueError: it is a list or an object with a message that cannot be used.
    """
    if isinstance(value, str):
        listed = value.lstrip().startswith('[{"') and value.rstrip().endswith("}]")
        return _json_messages(value) if listed else value
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        return (read_message(value),)
    return read_conversation(value) if isinstance(value, list) and value and isinstance(value[0], Mapping) else None


def _json_messages(text: str) -> Text:
    """Return the messages that a CSV file has as JSON text; other text as it is."""
    try:
        first = json.loads(text)[0]
    except (ValueError, RecursionError, LookupError):
        return text
    return read_conversation(text) if isinstance(first, dict) and ("role" in first or "from" in first) else text


def join(prompt: Text | None, answers: Sequence[Text]) -> tuple[Text, tuple[Text, ...]]:
    """Return a prompt and its answers, all of them plain text or all of them messages.

    Without a prompt, or with answers that repeat it, the prompt is what all answers begin with.

    Raises:
        ValueError: the answers have different prompts, or an answer is empty.
    """
    if prompt in (None, "", ()):
        texts = [read_transcript(one) or one if isinstance(one, str) else one for one in answers]
        messages = [one for one in texts if not isinstance(one, str)]
        if len(messages) == len(texts):
            return _implied_messages(messages)
        if not messages:
            return (prompt or "", tuple(answers)) if prompt is not None else _implied_text(answers)
        raise ValueError("one answer is text and the other is messages")
    if isinstance(prompt, str) and all(isinstance(one, str) for one in answers):
        return prompt, tuple(answers)
    asked = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt or ())
    replies = tuple((Message("assistant", one),) if isinstance(one, str) else one for one in answers)
    if all(one[0].role not in ("assistant", "tool") for one in replies):
        shared, rest = _implied_messages(replies)
        if asked[-1].content.strip() not in [one.content.strip() for one in shared if isinstance(one, Message)]:
            raise ValueError("the conversations do not continue the row's prompt")
        return shared, rest
    if not all(one[0].role == "assistant" for one in replies):
        raise ValueError("an answer must begin with the assistant's message")
    if asked[-1].role == "assistant":
        raise ValueError("the prompt ends with an assistant's message, and the answer begins with another one")
    return asked, replies


def _implied_messages(answers: Sequence[tuple[Message, ...]]) -> tuple[Text, tuple[Text, ...]]:
    if len(answers) == 1:
        ends = [index for index, message in enumerate(answers[0]) if message.role == "assistant"]
        if not ends or ends[-1] == 0:
            raise ValueError("no answer of the assistant after a message of the user")
        return answers[0][: ends[-1]], (answers[0][ends[-1] :],)
    shared = 0
    while all(len(one) > shared and one[shared] == answers[0][shared] for one in answers):
        shared += 1
    if any(len(one) == shared for one in answers):
        raise ValueError("chosen and rejected are the same conversation, or one is the beginning of the other")
    if not shared or any(one[shared].role != "assistant" for one in answers):
        raise ValueError(f"chosen and rejected have different prompts: they differ at message {shared + 1}")
    return answers[0][:shared], tuple(one[shared:] for one in answers)


def _implied_text(answers: Sequence[Text]) -> tuple[str, tuple[Text, ...]]:
    texts = [one for one in answers if isinstance(one, str)]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    # The prompt ends with a word.
    end = max((index for index, letters in enumerate(same) if letters[0].isspace()), default=0)
    if any(not one[end:].strip() for one in texts):
        raise ValueError("chosen and rejected are the same text, or one is the beginning of the other")
    return texts[0][:end], tuple(one[end:] for one in texts)


def in_chat(prompt: Text, answers: Sequence[Text], system: str) -> tuple[Text, tuple[Text, ...]]:
    """Return plain texts as a user's message and the assistant's answers, with a system message if there is one."""
    asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    if system:
        asked = (Message("system", system), *(message for message in asked if message.role != "system"))
    return asked, tuple((Message("assistant", one),) if isinstance(one, str) else one for one in answers)


def unlearnt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages of a prompt, of which none is learnt."""
    return tuple(replace(message, learnt=False) if message.role == "assistant" else message for message in messages)
