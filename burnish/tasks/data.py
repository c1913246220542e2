"""The data task: a user's own prompts, from files or the Hugging Face hub, by the paths of their fields."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from burnish.data.exchanges import Text, join, read_text
from burnish.data.fields import as_text, field, has_field
from burnish.data.files import RawRow, json_type
from burnish.data.messages import read_conversation
from burnish.data.origin import Origin
from burnish.data.splits import SplitTask, TaskExample, digest, task_example
from burnish.errors import InputError
from burnish.types import Message

if TYPE_CHECKING:
    from burnish.protocols import Observer

LISTED = 5
"""The most broken rows that a message lists."""
PROMPTS = ("prompt", "messages", "conversations", "conversation")
"""Columns that hold the prompt where no option names one."""
GROUND_TRUTH = "reward_model.ground_truth"
"""The field of verl's rows that is their reference."""


class DataTask(SplitTask):
    """Prompts from files of JSON, CSV, Parquet or Arrow, or from a data set of the hub.

    A prompt is text or a conversation: a list of messages in OpenAI's or ShareGPT's form. The side of a prompt depends
    on a hash of its text, with single spaces. Near-copies and rows with one value of the column ``group`` share a side.
    A repeated prompt is left out and counted. Rows that cannot be used are counted, a message lists the first ones with
    the reasons, and a run lists all of them in its ``broken_rows.jsonl``.

    Args:
        path: a file, or a pattern such as "data/*.jsonl"; a relative path starts at the working directory.
        dataset: instead of a file, the name of a data set of the hub, with ``config``, ``side`` ("train", ...) and
            ``revision`` (a commit, tag or branch; if empty the newest, which may change).
        held_out: the data's own held-out side: a split of the data set, or a file like ``path``. Training rows that are
            near-copies of it are left out.
        format: "jsonl", "json", "csv", "parquet" or "arrow", if the file's suffix does not say it.
        delimiter: the delimiter of a CSV file.
        prompt: the field with the prompt: a column, or a path such as "data.question".
        template: instead of ``prompt``, a text with fields in braces, as in "Translate: {sentence}".
        messages: instead of ``prompt``, a field with a conversation. If its last message is the assistant's, that is
            the reference, unless ``reference`` names a field.
        reference: the field with the true answer. Without it, the answer that the row has, if any:
            ``reward_model.ground_truth``, ``completion``, ``chosen`` or the last message. A list is several true
            answers; another value that is not text becomes JSON.
        group: a field; rows with the same value share a side.
        metadata: fields that rewards may read from the prompt's metadata; if empty, all columns.
        system: a system message at the beginning of each conversation.
        chat: whether prompts go through the model's chat template.
        held_out_percent: share of the prompts, by hash, that training never sees; unused with ``held_out``.
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
        held_out: str = "",
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
        self.origin = Origin(
            path=path, dataset=dataset, config=config, side=side, revision=revision, held_out=held_out, format=format,
            delimiter=delimiter,
        )  # fmt: skip
        if not prompt:
            raise InputError("prompt is empty: name the field with the prompt, or leave it out")
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
        self.template, self.pieces, self.reference = template, _pieces(template), reference
        self.group, self.metadata, self.system, self.chat = group, list(metadata), system, chat
        self.max_broken, self.max_characters = max_broken, max_characters
        self.prompt, self.messages = prompt, messages
        self.broken: tuple[RawRow, ...] = ()
        self._objects, self._key = 0, ""

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        broken: list[RawRow] = []
        examples, total = self._read(self.origin.rows(offline=offline), broken, "")
        if self.origin.held_out:
            held_out, more = self._read(self.origin.rows(held_out=True, offline=offline), broken, "held-out ")
            self.own_held_out = frozenset(one.digest for one in held_out)
            examples, total = [*held_out, *examples], total + more
        if not total:
            raise InputError(f"'{self.origin.name}' has no rows, so there are no prompts")
        if broken:
            listed = "; ".join(f"{row.position}: {row.reason}" for row in broken[:LISTED])
            more_rows = "; ..." if len(broken) > LISTED else ""
            summary = f"{len(broken)} of {total} rows of '{self.origin.name}' cannot be used: {listed}{more_rows}"
            if len(broken) > self.max_broken * total:
                # `init` and `check` allow nearly all rows to be unusable: there, the columns are wrong.
                wide = self.max_broken > 0.99
                other = "name other columns" if wide else f"raise max_broken (now {self.max_broken})"
                raise InputError(f"{summary}; correct them, or {other}")
            if observer:
                observer.message(f"data: {summary}", level="warning")
        self.broken = tuple(broken)
        if self._objects and observer:
            name = self.reference or GROUND_TRUTH
            observer.message(
                f"data: the reference '{name}' is an object in {self._objects} of {total} rows, and rewards get it as "
                f'JSON text: unless they read JSON, name one of its fields, as in reference = "{name}.{self._key}"',
                level="warning",
            )
        return examples

    def _read(self, rows: Iterable[RawRow], broken: list[RawRow], side: str) -> tuple[list[TaskExample], int]:
        """Return the examples of a side and the number of its rows, and append those that cannot be used."""
        examples: list[TaskExample] = []
        total = 0
        for row in rows:
            total += 1
            try:
                if row.values is None:
                    raise ValueError(row.reason)
                example = self._example(row.values)
                prompt = replace(example.prompt, position=side + row.position)
                examples.append(replace(example, prompt=prompt))
            except ValueError as error:
                broken.append(RawRow(side + row.position, None, str(error)))
        return examples, total

    def _example(self, row: Mapping[str, Any]) -> TaskExample:
        """Return the example of a row. Raises ValueError with the reason if it cannot be used."""
        answer: str | None = None
        name = "" if self.template else self._prompt_field(row)
        asked: Text = self._filled(row) if self.template else self._asked(row, name)
        conversation = not isinstance(asked, str)
        messages: tuple[Message, ...] = ()
        if isinstance(asked, str):
            text, messages = asked, (Message("user", asked),) if self.chat else ()
        elif self.chat:
            messages, answer = self._conversation(asked, name)
            text = messages[-1].content
        else:
            raise ValueError(f"'{name}' is a conversation, which needs chat = true")
        if self.system:
            messages = (Message("system", self.system), *(each for each in messages if each.role != "system"))
        reference = (
            self._reference(row, self.reference) if self.reference else self._own_answer(row, asked, name, answer)
        )
        whole = "\n".join(f"{each.role}: {each.content}{each.extra}" for each in messages) if conversation else text
        content = " ".join(whole.split())
        texts = [content]
        if self.group:
            # The rows of a group share this text, a word that stands for it.
            texts.append(digest(json.dumps(field(row, self.group), sort_keys=True, default=str)))
        kept = {column: column for column in self.metadata} or {
            column: column for column in row if conversation or column != name
        }
        metadata: dict[str, object] = {column: field(row, column) for column in kept}
        return task_example("data", content, text, reference, messages=messages, texts=tuple(texts), metadata=metadata)

    def _prompt_field(self, row: Mapping[str, Any]) -> str:
        """Return the field that has a row's prompt; "" if the prompt is what the chosen and the rejected answer share."""
        if self.messages or has_field(row, self.prompt) or self.prompt != "prompt":
            return self.messages or self.prompt
        shared = "" if "chosen" in row and "rejected" in row else "prompt"
        return next((name for name in PROMPTS if name in row), shared)

    def _asked(self, row: Mapping[str, Any], name: str) -> Text:
        try:
            if not name:
                return _implied(row)[0]
            value = field(row, name)
            asked = read_conversation(value) if self.messages else read_text(value)
        except ValueError as error:
            known = str(error).startswith("no column")
            raise ValueError(str(error) if known else f"'{name or 'chosen'}': {error}") from error
        if asked is None or isinstance(asked, str):
            return self._checked(value, name)
        return tuple(self._message(message) for message in asked)

    def _filled(self, row: Mapping[str, Any]) -> str:
        """Return the template with a row's fields."""
        parts = []
        for literal, name in self.pieces:
            parts.append(literal)
            if name is not None:
                value = field(row, name)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                parts.append(self._checked(str(value) if number else value, name))
        return "".join(parts)

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

    def _reference(self, row: Mapping[str, Any], name: str) -> str | tuple[str, ...]:
        value = field(row, name)
        if isinstance(value, dict):
            self._objects, self._key = self._objects + 1, next(iter(value), "")
        if isinstance(value, list) and value and not any(isinstance(one, list | dict) for one in value):
            several = (self._checked(None if one is None else as_text(one, name), name) for one in value)
            return tuple(dict.fromkeys(several))
        return self._checked("" if value == [] else None if value is None else as_text(value, name), name)

    def _own_answer(
        self, row: Mapping[str, Any], asked: Text, name: str, answer: str | None
    ) -> str | tuple[str, ...] | None:
        """Return the answer that a row has without an option: that of its conversation, verl's, or TRL's.

        An answer that repeats the prompt is what follows it, and an answer of several turns is the first of them.
        """
        if answer is not None:
            return answer
        if has_field(row, GROUND_TRUTH):
            return self._reference(row, GROUND_TRUTH)
        for column in ("completion", "chosen"):
            if column in row and (text := read_text(row[column])):
                reply = join(asked, [text])[1][0] if name or self.template else _implied(row)[1][0]
                reply = reply if isinstance(reply, str) else reply[0].content
                return self._checked(reply, column) if reply.strip() else None
        return None

    def _conversation(self, messages: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str | None]:
        """Return the messages up to the user's last one, and the assistant's answer to it, if there is one."""
        last = messages[-1] if messages[-1].role == "assistant" else None
        asked = messages if last is None else messages[:-1]
        if last is not None and not last.learnt and not self.reference:
            raise ValueError(f"'{name}': the last answer has weight 0, so it is not a reference")
        if not asked or asked[-1].role not in ("user", "tool"):
            raise ValueError(f"'{name}': the last message, or the one before the last answer, must be the user's")
        return asked, None if last is None else last.content

    def _message(self, message: Message) -> Message:
        return message if message.extra else replace(message, content=self._checked(message.content, "content"))


def _implied(row: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
    """Return the prompt that the chosen and the rejected answer of a row begin with, and the rest of both."""
    answers = [text for column in ("chosen", "rejected") if (text := read_text(row[column])) is not None]
    if len(answers) < 2:
        raise ValueError("neither text nor messages")
    return join(None, answers)


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """Return the literals of a template, each with the field after it. Raises InputError without plain fields."""
    if not template:
        return []
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template: {error}; write {{{{ and }}}} for literal braces") from error
    names = [name for _, name, _, _ in parsed if name is not None]
    plain = all(name and not set(name) & set("[]") for name in names)
    if not names or not plain or any(spec or conversion for _, _, spec, conversion in parsed):
        raise InputError(
            "template must have fields in braces, as in {question} or {data.question}, without indices in brackets or "
            "formats"
        )
    return [(literal, name) for literal, name, _, _ in parsed]
