"""Conversations as text, by a model's chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from burnish.errors import InputError, one_line
from burnish.policies.template_rendering import TemplateError, render_template
from burnish.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The tag by which a template marks what the model writes."""
CLOSING_TAG = re.compile(r"</[\w:]+>|\[/[A-Z_]+\]|<\|?END_\w+\|>|<\w+\|>|\N{WHITE MEDIUM SQUARE}?/think\S*")
"""The end of a thought, in the spellings of today's templates."""
_WORD = "\ue000\ue001"
"""A user's message that no template contains."""
_REMEDY = "correct or remove it, or give the task a template of its own"


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a run uses its chat template.

    Attributes:
        template: a Jinja template that replaces the model's.
        variables: more variables of the template, such as ``enable_thinking``.
    """

    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put the own template in place of the tokenizer's, so that it is saved with the model.

        Raises:
            InputError: the tokenizer has no chat template, or the template does not read one of the variables.
        """
        if self.template is not None:
            tokenizer.chat_template = self.template
        if not self.variables:
            return
        if not tokenizer.chat_template:
            raise InputError("template_kwargs: the model has no chat template: remove them, or set template")
        source = str(tokenizer.get_chat_template())
        for name in self.variables:
            if name != "tools" and not re.search(rf"\b{re.escape(name)}\b", source):
                raise InputError(
                    f"template_kwargs.{name}: the chat template does not read it, so it would change nothing: remove it, or "
                    "correct its name"
                )


_run_time: datetime | None = None


@contextmanager
def fixed_time(now: datetime | None) -> Iterator[None]:
    """Let templates that write today's date read ``now`` instead of the clock: a run's date is that of its beginning."""
    global _run_time
    before, _run_time = _run_time, now
    try:
        yield
    finally:
        _run_time = before


@dataclass(frozen=True, slots=True)
class Layout:
    """What a template does to the messages of a prompt, by index.

    Attributes:
        dropped: messages that are not in the text.
        stripped: messages that lose the white space at their ends.
        moved: whether the messages' order changes.
    """

    dropped: tuple[int, ...]
    stripped: tuple[int, ...]
    moved: bool


class ChatTemplate:
    """A tokenizer's chat template under a run's settings.

    Raises:
        ValueError: from each method, if the template rejects the messages; the message has the reason.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings | None = None) -> None:
        self.tokenizer = tokenizer
        self.settings = settings or ChatSettings()
        self._now = _run_time or datetime.now()
        self._layouts: dict[tuple[tuple[str, str], ...], Layout] = {}
        self._parts: dict[str, bool] = {}

    @property
    def source(self) -> str:
        """The template; empty if the model has none."""
        if not self.tokenizer.chat_template:
            return ""
        return str(self.tokenizer.get_chat_template())

    def text(self, messages: Sequence[Message], *, begin_answer: bool) -> str:
        """Return the messages as text, with the start of the assistant's answer after them on request."""
        return self.marked_text(messages, begin_answer=begin_answer, marks=False)[0]

    def marked_text(
        self, messages: Sequence[Message], *, begin_answer: bool = False, marks: bool = True
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """Return the text and the parts of it that the template marks as the model's; None without marks."""
        source = self.source
        marks = marks and GENERATION.search(source) is not None
        return self._render(source, messages, begin_answer, marks=marks, parts=self.needs_parts)

    @property
    def needs_parts(self) -> bool:
        """Whether the template reads a message's content as a list of parts only, as those of some vision models do."""
        if self.source not in self._parts:
            self._parts[self.source] = not self._shows(parts=False) and self._shows(parts=True)
        return self._parts[self.source]

    def _shows(self, *, parts: bool) -> bool:
        try:
            return _WORD in self._render(self.source, [Message("user", _WORD)], True, marks=False, parts=parts)[0]
        except ValueError:
            return False

    def _render(
        self, source: str, messages: Sequence[Message], begin_answer: bool, *, marks: bool, parts: bool
    ) -> tuple[str, list[tuple[int, int]] | None]:
        values = {
            "messages": [_as_dict(message, parts) for message in messages], "tools": None, "documents": None,
            "add_generation_prompt": begin_answer, **self.tokenizer.special_tokens_map, **self.settings.variables,
        }  # fmt: skip
        text, spans = render_template(source, self._now, values)
        return text, _joined(spans) if marks else None

    def check(self, name: str) -> None:
        """Raise InputError unless the template is text that compiles, keeps its bounds and writes a user's message.

        A template that refuses the probes is accepted: it may want tools, or roles that a task gives it.

        Args:
            name: of the file and key that it comes from.
        """
        given, texts = self.tokenizer.chat_template, []
        named = given.values() if isinstance(given, dict) else [given]
        if not all(isinstance(one, str) for one in named):
            raise InputError(f"{name}: a chat template is text, and this is {given!r:.60}: correct or remove it")
        try:
            source = self.source
        except ValueError as error:  # several, and none is the default
            raise InputError(f"{name}: {one_line(error)[:200]}") from error
        user = Message("user", _WORD)
        for messages in ([user], [Message("system", "s"), user]):
            for parts in (False, True):
                try:
                    texts.append(self._render(source, messages, True, marks=False, parts=parts)[0])
                except TemplateError as error:
                    if error.broken:
                        raise InputError(f"{name}: the chat template cannot be used ({error}): {_REMEDY}") from error
                    continue
                if _WORD in texts[-1]:
                    return
        if texts:
            does = "ignores a user's message" if any(text.strip() for text in texts) else "writes nothing"
            raise InputError(f"{name}: the chat template {does}: {_REMEDY}")

    def layout(self, messages: Sequence[Message]) -> Layout:
        """Return what the template does to messages of these roles, by the places of marks in its text."""
        roles = tuple((message.role, message.extra) for message in messages)
        if roles not in self._layouts:
            marks = [chr(0xE000 + index) * 3 for index in range(len(roles))]
            pairs = zip(roles, marks, strict=True)
            marked = [Message(role, f" \n{mark}\n ", extra=extra) for (role, extra), mark in pairs]
            text = self.text(marked, begin_answer=True)
            indices = [text.find(mark) for mark in marks]
            kept = [index for index in indices if index >= 0]
            self._layouts[roles] = Layout(
                tuple(index for index, start in enumerate(indices) if start < 0),
                tuple(index for index, one in enumerate(marked) if indices[index] >= 0 and one.content not in text),
                kept != sorted(kept),
            )
        return self._layouts[roles]

    def refuse_lost(self, messages: Sequence[Message], text: str) -> None:
        """Raise ValueError if a message is missing from its conversation's text.

        Thoughts of earlier answers may be missing: templates remove them on purpose.
        """
        dropped = self.layout(messages).dropped
        for index, message in enumerate(messages):
            visible = message.content.strip()
            if message.role == "assistant" and visible not in text:
                visible = CLOSING_TAG.split(visible)[-1].strip()
            if visible and (index in dropped or visible not in text):
                raise ValueError(
                    f"the chat template leaves out message {index + 1}, of role '{message.role}': remove the message, or "
                    "set an own template"
                )
            for call in message.tools.get("tool_calls", ()):
                function = call.get("function", call) if isinstance(call, dict) else {}
                if str(function.get("name", "")) not in text:
                    raise ValueError(
                        f"the chat template leaves out the tool_calls of message {index + 1}: write them into its content "
                        "as the model does, or set an own template"
                    )

    def notes(self, conversations: Iterable[Sequence[Message]]) -> list[str]:
        """Return what the template does to the messages of prompts besides writing them, for a user to know."""
        stripped = moved = total = 0
        for messages in conversations:
            total += 1
            try:
                layout = self.layout(messages)
            except ValueError:  # it rejects these roles, which is reported where the prompt is encoded
                continue
            stripped += any(messages[index].content != messages[index].content.strip() for index in layout.stripped)
            moved += layout.moved
        of = f"in {{}} of {total} conversations"
        return [
            *(
                [f"the chat template strips white space at the ends of messages {of.format(stripped)}"]
                if stripped
                else []
            ),
            *([f"the chat template writes the messages in another order {of.format(moved)}"] if moved else []),
        ]


def _as_dict(message: Message, parts: bool) -> dict[str, Any]:
    content: Any = [{"type": "text", "text": message.content}] if parts else message.content
    names = ("thinking", "reasoning_content")  # gpt-oss reads the first
    thoughts = dict.fromkeys(names, message.reasoning) if message.reasoning else {}
    return {"role": message.role, "content": content, **thoughts, **message.tools}


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans with neighbours as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            begin = joined.pop()[0]
        joined.append((begin, end))
    return joined
