"""The data task: a user's own prompts, from a file or the Hugging Face hub, by the names of their columns."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from burnish.data.files import RawRow, file_format, json_type, read_file
from burnish.data.formats import read_message
from burnish.data.hub import hub_rows
from burnish.data.splits import SplitTask, TaskExample, digest, task_example
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.paths import expanded
from burnish.types import Message

if TYPE_CHECKING:
    from burnish.protocols import Observer

LISTED = 5
"""The most broken rows that a message lists."""


class DataTask(SplitTask):
    """Prompts from a JSONL, CSV or Parquet file, or from a data set of the hub.

    The side of a prompt depends on a hash of its text, with single spaces. Near-copies and rows with one value of the
    column ``group`` share a side. A repeated prompt is left out and counted. Rows that cannot be used are counted, a
    message lists the first ones with the reasons, and a run lists all of them in its ``broken_rows.jsonl``.

    Args:
        path: the file; a relative path starts at the working directory.
        dataset: instead of a file, the name of a data set of the hub, with ``config``, ``side`` ("train", ...) and
            ``revision`` (a commit, tag or branch; if empty the newest, which may change).
        format: "jsonl", "csv" or "parquet", if the file's suffix does not say it.
        delimiter: the delimiter of a CSV file.
        prompt: the column with the prompt.
        template: instead of ``prompt``, a text with column names in braces, as in "Translate: {sentence}".
        messages: instead of ``prompt``, a column with a conversation: a list of ``{"role", "content"}``. If its last
            message is the assistant's, that is the reference, unless ``reference`` names a column.
        reference: the column with the true answer; if empty there is no reference. Values other than text become JSON.
        group: a column; rows with the same value share a side.
        metadata: columns that rewards may read from the prompt's metadata.
        system: a system message at the beginning of each conversation.
        chat: whether prompts go through the model's chat template.
        held_out_percent: share of the prompts, by hash, that training never sees.
        max_broken: the largest share of unusable rows; more is an error.
        max_characters: a longer text makes its row unusable.

    Attributes:
        broken: once the data is read, the rows that cannot be used, with their positions and reasons.
    """

    name = "data"

    def __init__(
        self,
        *,
        path: str = "",
        dataset: str = "",
        config: str = "",
        side: str = "train",
        revision: str = "",
        format: str = "",
        delimiter: str = "",
        prompt: str = "prompt",
        template: str = "",
        messages: str = "",
        reference: str = "",
        group: str = "",
        metadata: list[str] = [],  # noqa: B006 - read, never changed; a default is how an option's kind is known
        system: str = "",
        chat: bool = True,
        held_out_percent: int = 10,
        max_broken: float = 0.01,
        max_characters: int = 100_000,
    ) -> None:
        super().__init__(held_out_percent)
        if bool(path) == bool(dataset):
            raise InputError('name either path (a file, as in path = "prompts.jsonl") or dataset (of the hub)')
        if template and messages:
            raise InputError("template and messages both define the prompt: remove one of them")
        if messages and not chat:
            raise InputError("messages are a conversation, which needs chat = true")
        if system and not chat:
            raise InputError("system is a message of a conversation, which needs chat = true")
        if not 0 <= max_broken < 1:
            raise InputError(f"max_broken = {max_broken}: must be at least 0 and below 1")
        if max_characters < 1:
            raise InputError(f"max_characters = {max_characters}: must be at least 1")
        if not all(isinstance(column, str) for column in metadata):
            raise InputError("metadata must be a list of column names")
        self.path, self.dataset, self.config, self.side = expanded(path), dataset, config, side
        self.revision = revision
        self.format = "" if dataset else file_format(self.path, format)
        self.delimiter, self.template, self.messages, self.reference = delimiter, template, messages, reference
        self.group, self.metadata, self.system, self.chat = group, list(metadata), system, chat
        self.max_broken, self.max_characters = max_broken, max_characters
        self.prompt = "" if template or messages else prompt
        self.fields = _fields(template)
        self.origin = dataset or str(self.path)
        self.broken: tuple[RawRow, ...] = ()

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        examples: list[TaskExample] = []
        broken: list[RawRow] = []
        total = 0
        for row in self._rows(offline):
            total += 1
            try:
                if row.values is None:
                    raise ValueError(row.reason)
                examples.append(self._example(row.values))
            except ValueError as error:
                broken.append(RawRow(row.position, None, str(error)))
        if not total:
            raise InputError(f"'{self.origin}' has no rows, so there are no prompts")
        if broken:
            listed = "; ".join(f"{row.position}: {row.reason}" for row in broken[:LISTED])
            more = "; ..." if len(broken) > LISTED else ""
            summary = f"{len(broken)} of {total} rows of '{self.origin}' cannot be used: {listed}{more}"
            if len(broken) > self.max_broken * total:
                raise InputError(f"{summary}; correct them, or raise max_broken (now {self.max_broken})")
            if observer:
                observer.message(f"data: {summary}", level="warning")
        self.broken = tuple(broken)
        return examples

    def _rows(self, offline: bool) -> Iterator[RawRow]:
        if self.dataset:
            return hub_rows(self.dataset, config=self.config, side=self.side, revision=self.revision, offline=offline)
        return read_file(self.path, self.format, delimiter=self.delimiter)

    def _example(self, row: Mapping[str, Any]) -> TaskExample:
        """Return the example of a row. Raises ValueError with the reason if it cannot be used."""
        answer: str | None = None
        if self.messages:
            messages, answer = self._conversation(self._value(row, self.messages))
            text = messages[-1].content
        else:
            columns = {name: self._text(row, name) for name in self.fields}
            text = self.template.format_map(columns) if self.template else self._text(row, self.prompt)
            messages = (Message("user", text),) if self.chat else ()
        if self.system:
            messages = (Message("system", self.system), *(each for each in messages if each.role != "system"))
        reference = self._reference(row) if self.reference else answer
        whole = "\n".join(f"{each.role}: {each.content}" for each in messages) if self.messages else text
        content = " ".join(whole.split())
        texts = [content]
        if self.group:
            # The rows of a group share this text, a word that stands for it.
            texts.append(digest(json.dumps(self._value(row, self.group), sort_keys=True, default=str)))
        metadata: dict[str, object] = {column: self._value(row, column) for column in self.metadata}
        return task_example("data", content, text, reference, messages=messages, texts=tuple(texts), metadata=metadata)

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        if column not in row:
            listed = ", ".join(list(map(str, row))[:8])
            raise ValueError(f"no column '{column}'{nearest(column, map(str, row))}; it has {listed}")
        return row[column]

    def _text(self, row: Mapping[str, Any], column: str) -> str:
        return self._checked(self._value(row, column), column)

    def _checked(self, value: Any, column: str) -> str:
        if not isinstance(value, str):
            wrong = "" if value is None else ", not text"
            raise ValueError(f"'{column}' is {json_type(value)}{wrong}")
        if not value.strip():
            raise ValueError(f"'{column}' is empty")
        if len(value) > self.max_characters:
            raise ValueError(
                f"'{column}' has {len(value):,} characters, more than max_characters = {self.max_characters}"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"'{column}' is not UTF-8 text") from None
        return value

    def _reference(self, row: Mapping[str, Any]) -> str:
        value = self._value(row, self.reference)
        if value is not None and not isinstance(value, str):
            try:
                value = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(f"'{self.reference}' is {json_type(value)} that JSON does not have") from None
        return self._checked(value, self.reference)

    def _conversation(self, value: Any) -> tuple[tuple[Message, ...], str | None]:
        """Return the messages up to the user's last one, and the assistant's answer to it, if there is one."""
        if isinstance(value, str):  # CSV has no lists
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"'{self.messages}' is not a list of messages") from None
        if not isinstance(value, list) or not value:
            raise ValueError(f"'{self.messages}' is not a list of messages")
        messages = [self._message(each) for each in value]
        last = messages.pop() if messages[-1].role == "assistant" else None
        if last is not None and not last.learnt and not self.reference:
            raise ValueError(f"'{self.messages}': the last answer has weight 0, so it is not a reference")
        if not messages or messages[-1].role != "user":
            raise ValueError(
                f"'{self.messages}': the last message, or the one before the last answer, must be the user's"
            )
        return tuple(messages), None if last is None else last.content

    def _message(self, value: Any) -> Message:
        try:
            message = read_message(value)
        except ValueError as error:
            raise ValueError(f"'{self.messages}': {error}") from error
        return replace(message, content=self._checked(message.content, "content"))


def _fields(template: str) -> list[str]:
    """Return the columns that a template names. Raises InputError if it names none, or has other fields."""
    if not template:
        return []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template: {error}; write {{{{ and }}}} for literal braces") from error
    fields = [name for _, name, _, _ in parsed if name is not None]
    plain = all(name and not set(name) & set(".[]") for name in fields)
    if not fields or not plain or any(spec or conversion for _, _, spec, conversion in parsed):
        raise InputError(
            "template must have column names in braces, as in {question}, without attributes, indices or formats"
        )
    return fields
