"""Rows out of a file of JSON lines, by the names of its columns. A line that cannot be used is listed, never left out
in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from burnish.data.files import kind_of
from burnish.data.rows import Broken, Dialogue, Judged, Pair, Row, Rows, Text, Turn, digest, unrepeated
from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.registry import nearest
from burnish.system.paths import expanded

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
    "pairs": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
}
"""Format -> the columns it needs."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {"pairs": ("margin",)}
"""Format -> the columns that it may have besides."""
ROLES = ("system", "user", "assistant")


class JsonLines:
    """A file of JSON lines: chat, completion, text, pairs or labelled.

    Args:
        path: the file; a relative path is meant from the folder the command runs in.
        format: "chat" (``messages``: a list of ``{"role", "content"}``), "completion" (``prompt``, ``completion``),
            "text" (``text``), "labelled" (``prompt``, ``completion``, ``label``: true or false) or
            "pairs" (``prompt``, ``chosen``, ``rejected``, and ``margin`` where there is one).
        columns: the file's own names for these, such as ``{ prompt = "question" }``.

    Raises:
        InputError: an option cannot be meant, or (when read) the file cannot be read.
    """

    def __init__(self, *, path: str = "", format: str = "", columns: dict[str, str] | None = None) -> None:
        if not path:
            raise InputError('data.path is missing: name the file, as in path = "data.jsonl"')
        if format not in COLUMNS:
            raise InputError(f"data.format = '{format}'{nearest(format, COLUMNS)}: write one of {', '.join(COLUMNS)}")
        known = COLUMNS[format] + OPTIONAL.get(format, ())
        for name, column in (columns or {}).items():
            if name not in known or not isinstance(column, str):
                raise InputError(
                    f"data.columns: '{name}'{nearest(name, known)}: for format '{format}' name {', '.join(known)}, each "
                    "with the column's name as text"
                )
        self.path = expanded(path)
        self.format = format
        self.columns = {name: (columns or {}).get(name, name) for name in known}

    def rows(self, *, held_out_percent: int = 25, offline: bool = False, observer: Observer | None = None) -> Rows:
        """Reads the file."""
        make: Callable[[Mapping[str, Any]], Row] = getattr(self, f"_{self.format}")
        found: list[Row] = []
        broken: list[Broken] = []
        for number, line in self._lines():
            try:
                found.append(make(self._values(line)))
            except ValueError as error:
                broken.append(Broken(f"line {number}", str(error)))
        unique, repeats = unrepeated(found)
        return Rows(unique, tuple(broken), repeats, str(self.path))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, line
        except OSError as error:
            raise InputError(f"data.path = '{self.path}': cannot be read: {error.strerror}") from error

    def _values(self, line: bytes) -> dict[str, Any]:
        """The line's columns by our names. Raises ValueError that says what is wrong."""
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({' '.join(str(error).split())[:80]})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{kind_of(row)}, not an object with columns")
        for name in COLUMNS[self.format]:
            if self.columns[name] not in row:
                listed = ", ".join(list(map(str, row))[:8])
                raise ValueError(f"no column '{self.columns[name]}'{nearest(self.columns[name], row)}; it has {listed}")
        return {name: row[column] for name, column in self.columns.items() if column in row}

    def _chat(self, values: Mapping[str, Any]) -> Dialogue:
        messages = values["messages"]
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"'{self.columns['messages']}' is not a list of messages")
        turns = tuple(_turn(message) for message in messages)
        first = next((place for place, turn in enumerate(turns) if turn.role == "assistant"), None)
        if first is None:
            raise ValueError("no assistant message, so nothing to learn")
        if first == 0:
            raise ValueError("begins with the assistant: somebody has to ask first")
        return Dialogue(turns, digest(*(turn.content for turn in turns[:first])))

    def _completion(self, values: Mapping[str, Any]) -> Text:
        prompt = self._string(values, "prompt", empty=True)
        completion = self._string(values, "completion")
        return Text(prompt, completion, digest(prompt or completion))

    def _text(self, values: Mapping[str, Any]) -> Text:
        text = self._string(values, "text")
        return Text("", text, digest(text))

    def _pairs(self, values: Mapping[str, Any]) -> Pair:
        prompt = self._string(values, "prompt", empty=True)
        chosen, rejected = self._string(values, "chosen"), self._string(values, "rejected")
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same text")
        return Pair(prompt, chosen, rejected, digest(prompt or chosen), self._margin(values.get("margin")))

    def _labelled(self, values: Mapping[str, Any]) -> Judged:
        text = self._completion(values)
        if not isinstance(values["label"], bool):
            raise ValueError(f"'{self.columns['label']}' is {str(values['label'])[:40]}, not true or false")
        return Judged(text.prompt, text.completion, values["label"], text.unit)

    def _margin(self, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"'{self.columns['margin']}' is {str(value)[:40]}, not a finite number")
        return float(value)

    def _string(self, values: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
        value = values[name]
        if not isinstance(value, str):
            raise ValueError(f"'{self.columns[name]}' is {kind_of(value)}, not text")
        if not empty and not value.strip():
            raise ValueError(f"'{self.columns[name]}' is empty")
        return value


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"a message is a {type(message).__name__}, not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"role {str(role)[:40]!r}: known roles are {', '.join(ROLES)}")
    if not isinstance(content, str) or (role == "assistant" and not content.strip()):
        raise ValueError(f"the content of a message of '{role}' is no text")
    return Turn(role, content)
