"""The data task: prompts of one's own, out of a file or the Hugging Face hub, by the names of their columns."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from burnish.data import files as tables
from burnish.data import hub
from burnish.data.splits import Example, TwoSided, example
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.paths import expanded
from burnish.types import Message

if TYPE_CHECKING:
    from burnish.protocols import Observer

ROLES = ("system", "user", "assistant")
LISTED = 5
"""Broken rows that are named one by one."""


class Data(TwoSided):
    """Prompts out of a JSONL, CSV or Parquet file, or a data set of the hub.

    The side of a prompt hangs on a hash of its text (white space aside), or of the column ``group``. A prompt that was there
    before is left out and counted. Rows that cannot be used are counted, the first ones are listed with their reasons, and a
    run lists all of them in its ``broken_rows.jsonl``.

    Args:
        path: the file; a relative path is meant from the folder the command runs in.
        dataset: instead of a file, the hub's name of a data set, with ``config``, ``side`` ("train", ...) and ``revision``
            (a commit, tag or branch; the newest, which may change, where it is empty).
        format: "jsonl", "csv" or "parquet" where the file's name does not say it.
        delimiter: of CSV.
        prompt: the column that is asked.
        template: instead of ``prompt``, a text with the names of columns in braces, as in "Translate: {sentence}".
        messages: instead of ``prompt``, a column with a conversation: a list of ``{"role", "content"}``. Where the
            assistant has the last word, that is the reference, unless a column is named for it.
        reference: the column of true answers; none where it is empty. What is not text there is written as JSON.
        group: a column; rows of one value lie on one side.
        metadata: columns that rewards may read from the prompt's metadata.
        system: a system message that begins each conversation.
        chat: whether prompts go through the model's chat template.
        held_out_percent: share of the prompts, by hash, that training never sees.
        max_broken: share of the rows that may be unusable; more is an error.
        max_characters: a longer text makes a row unusable.

    Raises:
        InputError: options that cannot be meant, a file that cannot be read, a column that no row has, or too many broken
            rows.

    Attributes:
        broken: once the data are read, the rows that cannot be used, with their places and reasons.
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
            raise InputError('name one of path (a file, as in path = "prompts.jsonl") and dataset (of the hub)')
        if template and messages:
            raise InputError("template and messages both say what is asked: leave one of them out")
        if messages and not chat:
            raise InputError("messages are a conversation, which needs chat = true")
        if system and not chat:
            raise InputError("system is a message of a conversation, which needs chat = true")
        if not 0 <= max_broken < 1:
            raise InputError(f"max_broken = {max_broken}: must be at least 0 and below 1")
        if max_characters < 1:
            raise InputError(f"max_characters = {max_characters}: must be at least 1")
        if not all(isinstance(column, str) for column in metadata):
            raise InputError("metadata must be a list of columns' names")
        self.path, self.dataset, self.config, self.side = expanded(path), dataset, config, side
        self.revision = revision
        self.format = "" if dataset else tables.format_of(self.path, format)
        self.delimiter, self.template, self.messages, self.reference = delimiter, template, messages, reference
        self.group, self.metadata, self.system, self.chat = group, list(metadata), system, chat
        self.max_broken, self.max_characters = max_broken, max_characters
        self.prompt = "" if template or messages else prompt
        self.fields = _fields(template)
        self.origin = dataset or str(self.path)
        self.broken: tuple[tables.Row, ...] = ()

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[Example]:
        found: list[Example] = []
        broken: list[tables.Row] = []
        total = 0
        for row in self._rows(offline):
            total += 1
            try:
                if row.values is None:
                    raise ValueError(row.reason)
                found.append(self._example(row.values))
            except ValueError as error:
                broken.append(tables.Row(row.place, None, str(error)))
        if not total:
            raise InputError(f"'{self.origin}' has no rows: nothing to ask")
        if broken:
            listed = "; ".join(f"{row.place}: {row.reason}" for row in broken[:LISTED])
            more = "; ..." if len(broken) > LISTED else ""
            said = f"{len(broken)} of {total} rows of '{self.origin}' cannot be used: {listed}{more}"
            if len(broken) > self.max_broken * total:
                raise InputError(f"{said}; mend them, or raise max_broken (now {self.max_broken})")
            if observer:
                observer.message(f"data: {said}", level="warning")
        self.broken = tuple(broken)
        return found

    def _rows(self, offline: bool) -> Iterator[tables.Row]:
        if self.dataset:
            return hub.rows(self.dataset, config=self.config, side=self.side, revision=self.revision, offline=offline)
        return tables.read(self.path, self.format, delimiter=self.delimiter)

    def _example(self, row: Mapping[str, Any]) -> Example:
        """Raises ValueError that says what is wrong with the row."""
        said: str | None = None
        if self.messages:
            messages, said = self._conversation(self._value(row, self.messages))
            text = messages[-1].content
        else:
            text = self._asked(row)
            messages = (Message("user", text),) if self.chat else ()
        if self.system:
            messages = (Message("system", self.system), *(each for each in messages if each.role != "system"))
        reference = self._reference(row) if self.reference else said
        whole = "\n".join(f"{each.role}: {each.content}" for each in messages) if self.messages else text
        content = " ".join(whole.split())
        group = (self._marked(row),) if self.group else ()
        metadata: dict[str, object] = {column: self._value(row, column) for column in self.metadata}
        return example("data", content, text, reference, messages=messages, texts=group, metadata=metadata)

    def _marked(self, row: Mapping[str, Any]) -> str:
        """One word for the row's group: rows that share it lie on one side."""
        value = json.dumps(self._value(row, self.group), sort_keys=True, default=str)
        return hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()

    def _asked(self, row: Mapping[str, Any]) -> str:
        if not self.template:
            return self._text(row, self.prompt)
        return self.template.format_map({name: self._text(row, name) for name in self.fields})

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
            raise ValueError(f"'{column}' is {tables.kind_of(value)}{wrong}")
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
                raise ValueError(f"'{self.reference}' is {tables.kind_of(value)} that JSON does not have") from None
        return self._checked(value, self.reference)

    def _conversation(self, value: Any) -> tuple[tuple[Message, ...], str | None]:
        """The messages up to the user's last one, and what the assistant said to it, where that is there."""
        if isinstance(value, str):  # CSV has no lists
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"'{self.messages}' is no list of messages") from None
        if not isinstance(value, list) or not value:
            raise ValueError(f"'{self.messages}' is no list of messages")
        messages = [self._message(each) for each in value]
        said = messages.pop().content if messages[-1].role == "assistant" else None
        if not messages or messages[-1].role != "user":
            raise ValueError(f"'{self.messages}': nothing that a user asks stands last, or before the last answer")
        return tuple(messages), said

    def _message(self, value: Any) -> Message:
        role = value.get("role") if isinstance(value, dict) else None
        if not isinstance(value, dict) or role not in ROLES:
            raise ValueError(
                f"'{self.messages}': a message is an object with content and role, one of {', '.join(ROLES)}"
            )
        return Message(role, self._checked(value.get("content"), "content"))


def _fields(template: str) -> list[str]:
    """The columns that a template names. Raises InputError where it names none, or anything else."""
    if not template:
        return []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template: {error}; write {{{{ and }}}} for braces that are meant") from error
    fields = [name for _, name, _, _ in parsed if name is not None]
    plain = all(name and not set(name) & set(".[]") for name in fields)
    if not fields or not plain or any(spec or conversion for _, _, spec, conversion in parsed):
        raise InputError(
            "template must hold the names of columns in braces, as in {question}, and nothing else in them"
        )
    return fields
