"""Messages of conversations, as data sets write them."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.data.formats import RowFormat
from burnish.data.messages import read_message
from burnish.types import Message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"role": "user", "content": "a"}, Message("user", "a")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, Message("user", "ab")),
        ({"role": "assistant", "content": "a", "reasoning_content": "r"}, Message("assistant", "a", "r")),
        ({"role": "assistant", "content": "a", "thinking": "r", "tool_calls": None}, Message("assistant", "a", "r")),
        ({"role": "assistant", "content": "a", "weight": 0}, Message("assistant", "a", learnt=False)),
        ({"role": "assistant", "content": "a", "weight": 1, "id": 7}, Message("assistant", "a")),
        ({"role": "developer", "content": "a"}, Message("system", "a")),
        ({"from": "human", "value": "a"}, Message("user", "a")),
        ({"from": "gpt", "value": "a", "weight": None}, Message("assistant", "a")),
        (
            {"role": "tool", "content": "7", "tool_call_id": "c1"},
            Message("tool", "7", extra='{"tool_call_id": "c1"}'),
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            Message("assistant", "", extra='{"tool_calls": [{"function": {"name": "f"}}]}'),
        ),
    ],
)
def test_a_message_is_read(value: dict[str, Any], message: Message) -> None:
    assert read_message(value) == message


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"function_call": {"name": "f"}}, "has 'function_call', which is not supported"),
        ({"role": "user", "tool_calls": [{"name": "f"}]}, "has 'tool_calls', which is not supported"),
        ({"name": "Ann"}, "has 'name', which is not supported"),
        ({"content": [{"type": "image", "url": "x"}]}, "a content part of type 'image': only text can be used"),
        ({"content": [{"type": "text"}]}, "a content part of type 'text'"),
        ({"content": " "}, "no text as its content"),
        ({"weight": 0.5}, "weight 0.5: write 1 to learn it or 0 not to"),
        ({"reasoning_content": ["r"]}, "reasoning_content that is not an assistant's text"),
        ({"role": "user", "reasoning_content": "r"}, "reasoning_content that is not an assistant's text"),
        ({"role": "robot"}, "role 'robot': known roles are"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_message({"role": "assistant", "content": "a", **more})


def test_a_row_needs_an_answer_to_learn() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    with pytest.raises(ValueError, match="each assistant message has weight 0"):
        RowFormat("chat", {}).row({"messages": messages})
