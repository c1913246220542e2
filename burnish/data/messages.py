"""Messages of conversations, as data sets write them: OpenAI's form, ShareGPT's, and transcripts of one text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from burnish.data.files import json_type
from burnish.system.parsing import json_of
from burnish.types import Message, Role

SPEAKERS: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "tool": "tool",
    "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""A data set's name of a speaker -> role. ``developer`` is OpenAI's newer name of ``system``."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of an assistant's thoughts in a message."""
UNUSABLE = ("function_call", "audio", "images", "videos", "refusal", "prefix")
"""Keys of a message that chat templates read and that are not supported."""
TOOLS: Mapping[str, tuple[str, ...]] = {"assistant": ("tool_calls",), "tool": ("name", "tool_call_id")}
"""Role -> the keys about tools that a chat template gets."""
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def read_conversation(value: Any) -> tuple[Message, ...]:
    """Return the messages of a conversation: a list, one message, or JSON text of them, since CSV has only text.

    Raises:
        ValueError: it is not a list of messages, or one of them cannot be used.
    """
    if isinstance(value, str):
        try:
            value = json_of(value)
        except json.JSONDecodeError:
            raise ValueError("not a list of messages") from None
        except RecursionError:
            raise ValueError("not a list of messages: nested too deep") from None
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not value:
        raise ValueError("not a list of messages")
    return tuple(read_message(one) for one in value)


def read_transcript(text: str) -> tuple[Message, ...] | None:
    """Return the messages of a text such as ``\\n\\nHuman: ...\\n\\nAssistant: ...``; None if it is not of this form."""
    first, *parts = _TURN.split(text)
    if first.strip() or len(parts) < 4 or parts[0] != "Human":
        return None
    speakers, contents = parts[::2], parts[1::2]
    roles: list[Role] = ["user" if speaker == "Human" else "assistant" for speaker in speakers]
    return tuple(Message(role, content.strip()) for role, content in zip(roles, contents, strict=True))


def read_message(value: Any) -> Message:
    """Return a message of a conversation as data sets write it.

    The speaker is its ``role`` or ``from``. ``content`` or ``value`` is text or a list of text parts;
    ``reasoning_content`` (or ``reasoning``, ``thinking``) an assistant's thoughts, ``weight`` 0 or 1.

    Raises:
        ValueError: it cannot be used, or has a key whose meaning would be lost.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a message is {json_type(value)}, not an object with role and content")
    speaker = value.get("role", value.get("from"))
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"role {str(speaker)[:40]!r}: known roles are {', '.join(SPEAKERS)}")
    extra = {key: value[key] for key in TOOLS.get(role, ()) if value.get(key)}
    lost = [*UNUSABLE, *(key for keys in TOOLS.values() for key in keys)]
    if unusable := [key for key in lost if value.get(key) and key not in extra]:
        raise ValueError(
            f"a message has '{unusable[0]}', which is not supported: write it into content as the model does"
        )
    content = _joined_parts(value.get("content", value.get("value")))
    content = "" if content is None and "tool_calls" in extra else content
    if not isinstance(content, str) or (role == "assistant" and not content.strip() and not extra):
        raise ValueError(f"a message of role '{role}' has no text as its content")
    thoughts = [value[key] for key in REASONING if value.get(key)]
    if thoughts and (role != "assistant" or not isinstance(thoughts[0], str)):
        raise ValueError(f"a message of role '{role}' has a reasoning_content that is not an assistant's text")
    weight = value.get("weight")
    if weight is not None and weight not in (0, 1):
        raise ValueError(f"a message has weight {str(weight)[:40]}: write 1 to learn it or 0 not to")
    reasoning = cast(str, thoughts[0]) if thoughts else ""
    more = json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else ""
    return Message(role, content, reasoning, weight is None or bool(weight), more)


def _joined_parts(content: Any) -> Any:
    """Return the text of a message's content parts; other content as it is."""
    if not isinstance(content, list) or not content:
        return content
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else json_type(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"a message has a content part of type '{kind}': only text can be used")
    return "".join(part["text"] for part in content)
