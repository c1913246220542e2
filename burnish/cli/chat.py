"""The verb that talks: ``chat``."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.filtering import FilteredOutput, FilterPolicyName, chosen_filter
from burnish.cli.generation import Greedy, System, Temperature, TopK, TopP, report_loading
from burnish.cli.options import Model, Offline, Seed, Trust, escape
from burnish.errors import InputError

if TYPE_CHECKING:
    from burnish.model import LoadedModel
    from burnish.safety.filter.content_filter import ContentFilter
    from burnish.types import Message, Prompt

verbs = typer.Typer(rich_markup_mode=None)

COMMANDS = """\
/system TEXT  set the system message; without a text, remove it
/undo         remove the last message and its answer
/reset        begin a new conversation
/save FILE    append the conversation to a file of JSON lines, which burnish sft reads
/quit         end, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / needs a blank before it."""

SHARE_OF_ANSWER = 4
"""The oldest turns are left out to keep this part (a quarter) of the model's positions free for an answer, at most."""


@verbs.command()
def chat(
    model: Model,
    system: System = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    greedy: Greedy = False,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    seed: Seed = 0,
    filter_policy: FilterPolicyName = None,
    trust: Trust = False,
    offline: Offline = False,
) -> None:
    """Talk with a model in the terminal.

    Each line is a message; /help lists the commands. In a pipe, each line of standard input is one, too.
    """
    content_filter = chosen_filter(filter_policy)
    report_loading(model)
    from burnish.api import load

    loaded = load(model, trust=trust, offline=offline)
    loaded.prompt([], plain=False)  # refuses a model without a chat template
    options = {"temperature": 0.0 if greedy else temperature, "top_p": top_p, "top_k": top_k}
    session = Session(loaded, max_new_tokens, options, seed, content_filter)
    session.set_system(system)
    interactive = sys.stdin.isatty()
    if interactive:
        note(f"talking with {model}; /help lists the commands, Ctrl-D ends")
    for line in read_messages(interactive):
        try:
            if not session.take(line):
                return
        except InputError as error:
            if not interactive:
                raise
            note(escape(str(error)))
        except KeyboardInterrupt:  # just after an answer
            if not interactive:
                raise
            print()


@dataclass
class Session:
    """A conversation: turns of a message with its answer, oldest first, and the commands that change it."""

    model: LoadedModel
    max_new_tokens: int
    options: dict[str, Any]
    seed: int = 0
    content_filter: ContentFilter | None = None
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0
    """Number of the oldest turns that no longer fit into the model's positions."""
    asked: int = 0
    """Number of answers so far, removed ones included; each has its own random numbers."""

    def take(self, line: str) -> bool:
        """Answer a message or obey a command; return False at the end of the conversation."""
        command, _, argument = line.strip().partition(" ")
        if not line.strip():
            return True
        if not line.startswith("/"):
            self.answer(line.strip())
        elif command == "/quit":
            return False
        elif command == "/help":
            print(COMMANDS, file=sys.stderr)
        elif command == "/reset":
            self.turns, self.left_out = [], 0
            note("new conversation")
        elif command == "/undo":
            note(f"removed: {escape(self.turns.pop()[0][:60])}" if self.turns else "there is nothing to undo")
            self.left_out = 0
        elif command == "/system":
            self.set_system(argument.strip())
            note("the system message is set" if self.system else "there is no system message")
        elif command == "/save":
            self.save(argument.strip())
        else:
            raise InputError(f"there is no command {command}; /help lists them")
        return True

    def messages(self, question: str | None = None, *, first: int = 0) -> list[Message]:
        """Return the system message, the turns from index ``first`` on, and the question."""
        from burnish.types import Message

        turns = [
            message
            for question, answer in self.turns[first:]
            for message in (Message("user", question), Message("assistant", answer))
        ]
        system = [Message("system", self.system)] if self.system else []
        return [*system, *turns, *([Message("user", question)] if question is not None else [])]

    def set_system(self, text: str) -> None:
        """Replace the system message. Raises InputError if the chat template rejects one."""
        before, self.system = self.system, text
        try:
            self._count("?", 0)
        except InputError:
            self.system = before
            raise

    def answer(self, question: str) -> None:
        """Print the model's answer while it is sampled, and keep both. Ctrl-C ends the answer where it is."""
        from burnish.run.interrupts import Interrupts

        first, room = self._fit(question)
        self.asked += 1
        output = FilteredOutput(self.content_filter)
        with Interrupts() as interrupts:

            def receive(piece: str) -> None:
                output.update(piece)
                interrupts.release()  # between two tokens, nothing is half done
                interrupts.hold()

            interrupts.hold()
            end = ""
            try:
                (group,) = self.model.sample(
                    [self._prompt(question, first)], seed=self.seed + self.asked, on_text=receive,
                    max_new_tokens=min(self.max_new_tokens, room), **self.options,
                )  # fmt: skip
                if group.completions[0].finish_reason == "length":
                    tokens = len(group.completions[0].token_ids)
                    end = f"the answer was cut off after {tokens} tokens; see --max-new-tokens"
            except KeyboardInterrupt:
                end = "stopped"
            output.finish()
            print()
            if end:
                note(end)
            self._keep(question, output.text)

    def _keep(self, question: str, answer: str) -> None:
        if answer.strip():
            self.turns.append((question, answer))
        else:
            note("the answer is empty, so the message is forgotten")

    def save(self, name: str) -> None:
        """Append the conversation to a file, as one row of ``format = "chat"``."""
        if not name or not self.turns:
            raise InputError("/save needs the name of a file" if self.turns else "there is nothing to save yet")
        row = {"messages": [{"role": one.role, "content": one.content} for one in self.messages()]}
        path = Path(name).expanduser()
        try:
            with path.open("a+b") as file:
                file.seek(max(0, file.seek(0, 2) - 1))
                broken = file.read() not in (b"", b"\n")
                file.write(b"\n" * broken + json_module.dumps(row, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise InputError(f"{name} cannot be written: {error.strerror}") from error
        note(f"appended to {name}")

    def _fit(self, question: str) -> tuple[int, int]:
        """Return the index of the first turn to send, and how many tokens are left for the answer."""
        positions = self.model.max_positions
        if positions is None:
            return 0, self.max_new_tokens
        needed = min(self.max_new_tokens, max(1, positions // SHARE_OF_ANSWER))
        for first in range(self.left_out, len(self.turns) + 1):
            tokens = self._count(question, first)
            if tokens + needed <= positions:
                if first > self.left_out:
                    note(f"the model has {positions} positions; the oldest turns that it no longer sees: {first}")
                self.left_out = first
                return first, positions - tokens
        raise InputError(
            f"the message has {tokens} tokens, and the model has {positions} positions, {needed} of them for the "
            "answer: shorten it"
        )

    def _count(self, question: str, first: int) -> int:
        return self.model.count_tokens(self._prompt(question, first))

    def _prompt(self, question: str, first: int) -> Prompt:
        return self.model.prompt(self.messages(question, first=first), name="the conversation")


def read_messages(interactive: bool) -> Iterator[str]:
    """Yield the lines of standard input. At a terminal, Ctrl-C discards the line."""
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 - input() then edits lines and has a history
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        except UnicodeDecodeError as error:
            raise InputError("standard input is not UTF-8 text") from error
        if not interactive and not line:
            return
        yield line.removesuffix("\n")


def note(text: str) -> None:
    """Print a line of the program's own, apart from the model's text on standard output."""
    print(f"burnish: {text}", file=sys.stderr, flush=True)
