"""Unit tests of a program: it answers calls inside the sandbox, and the answers are compared outside.

The child is sent the functions' names and arguments, never what is expected. It answers with one line of JSON a call on a
descriptor that the program shares, so a program can write any line there; that gains it nothing, since a forged answer
has to be the right one to count, and a function might as well have returned it. What a program can do is see all the
arguments at once, and carry state from call to call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.errors import InputError
from burnish.sandbox.names import STRONGEST
from burnish.sandbox.run import DEFAULT, Limits, Verdict, attend


@dataclass(frozen=True, slots=True)
class Call:
    """One unit test: a function of the program, positional arguments, and the answer, all of JSON's types."""

    function: str
    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program made of its tests.

    Attributes:
        passed: one a call.
        verdict: of the process: calls after a timeout, a crash or a limit have no answer and count as failed.
    """

    passed: tuple[bool, ...]
    verdict: Verdict


def run_tests(program: str, calls: Sequence[Call], *, limits: Limits = DEFAULT, layer: str = STRONGEST) -> Outcome:
    """Runs a program, then calls its functions, in one process and in order.

    Args:
        program: Python source that defines the functions.
        calls: what to ask and what to expect.
        limits: of the program and all its calls together.
        layer: as of ``run``.

    Raises:
        InputError: arguments or an expected answer that JSON does not have.
    """
    for call in calls:
        _check(call)
    asked = [{"function": call.function, "arguments": list(call.arguments)} for call in calls]
    work = {"source": program, "name": "program.py", "calls": asked}
    verdict, heard = attend(work, limits=limits, answers=True, layer=layer)
    lines = heard.split(b"\n")[: len(calls)]
    lines += [b""] * (len(calls) - len(lines))
    return Outcome(tuple(_right(line, call.expected) for line, call in zip(lines, calls, strict=True)), verdict)


def _check(call: Call) -> None:
    plain = [list(call.arguments), call.expected]
    try:
        kept = json.loads(json.dumps(plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"unit test of '{call.function}': {error}; use lists, dicts, text and numbers") from error
    if not same(kept, plain):
        raise InputError(
            f"unit test of '{call.function}': JSON changes its values; use lists, text keys, finite numbers"
        )


def _right(line: bytes, expected: Any) -> bool:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and "value" in answer and same(answer["value"], expected)


def same(answer: Any, expected: Any) -> bool:
    """Whether two values of JSON's types are equal: true is not 1, and a float may differ by a relative 1e-9."""
    if isinstance(answer, bool) or isinstance(expected, bool):
        return answer is expected
    if isinstance(answer, float) or isinstance(expected, float):
        if not isinstance(answer, int | float) or not isinstance(expected, int | float):
            return False
        try:
            return math.isclose(answer, expected, rel_tol=1e-9)
        except OverflowError:  # a whole number beyond the floats
            return False
    if isinstance(answer, list) and isinstance(expected, list):
        return len(answer) == len(expected) and all(map(same, answer, expected))
    if isinstance(answer, dict) and isinstance(expected, dict):
        return answer.keys() == expected.keys() and all(same(answer[key], expected[key]) for key in expected)
    return type(answer) is type(expected) and bool(answer == expected)
