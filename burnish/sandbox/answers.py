"""Unit tests of a program: its functions are called inside the sandbox, and the answers are compared outside.

The program's process receives the names of functions and their arguments, never the expected answers. It writes one
line of JSON per call to a descriptor that the program can write to as well. Forging a line gains nothing: only the
right answer counts, and a function could have returned it. A program does see all arguments at once, and keeps its
state from call to call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.errors import InputError
from burnish.sandbox.names import STRONGEST
from burnish.sandbox.run import DEFAULT, Limits, Verdict, run_request


@dataclass(frozen=True, slots=True)
class Call:
    """One unit test: a function of the program, positional arguments and the expected answer, all of JSON types."""

    function: str
    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a program's unit tests: one value per call, and the verdict on the process.

    Calls after a timeout, a crash or a broken limit have no answer and count as failed.
    """

    passed: tuple[bool, ...]
    verdict: Verdict


def run_tests(program: str, calls: Sequence[Call], *, limits: Limits = DEFAULT, layer: str = STRONGEST) -> Outcome:
    """Run a program, then call its functions in order, in the same process and within the limits of both together.

    Raises:
        InputError: JSON cannot represent the arguments or the expected answer, or the layer does not exist.
    """
    for call in calls:
        _check(call)
    questions = [{"function": call.function, "arguments": list(call.arguments)} for call in calls]
    request = {"source": program, "name": "program.py", "calls": questions}
    verdict, answered = run_request(request, limits=limits, answers=True, layer=layer)
    lines = answered.split(b"\n")[: len(calls)]
    lines += [b""] * (len(calls) - len(lines))
    return Outcome(tuple(_is_correct(line, call.expected) for line, call in zip(lines, calls, strict=True)), verdict)


def _check(call: Call) -> None:
    values = [list(call.arguments), call.expected]
    try:
        decoded = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"unit test of '{call.function}': {error}; use lists, dicts, text and numbers") from error
    if not equal_json(decoded, values):
        raise InputError(
            f"unit test of '{call.function}': JSON changes its values; use lists, text keys, finite numbers"
        )


def _is_correct(line: bytes, expected: Any) -> bool:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and "value" in answer and equal_json(answer["value"], expected)


def equal_json(answer: Any, expected: Any) -> bool:
    """Return whether two JSON values are equal. True is not 1, and floats may differ by a relative 1e-9."""
    if isinstance(answer, bool) or isinstance(expected, bool):
        return answer is expected
    if isinstance(answer, float) or isinstance(expected, float):
        if not isinstance(answer, int | float) or not isinstance(expected, int | float):
            return False
        try:
            return math.isclose(answer, expected, rel_tol=1e-9)
        except OverflowError:  # an integer too large for a float
            return False
    if isinstance(answer, list) and isinstance(expected, list):
        return len(answer) == len(expected) and all(map(equal_json, answer, expected))
    if isinstance(answer, dict) and isinstance(expected, dict):
        return answer.keys() == expected.keys() and all(equal_json(answer[key], expected[key]) for key in expected)
    return type(answer) is type(expected) and bool(answer == expected)
