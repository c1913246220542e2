"""Unit tests of a program: its functions are called inside the sandbox, and the answers are compared outside.

The program's process receives the names of functions and their arguments, never the expected answers. It writes one
line of JSON per call to a descriptor that the program can write to as well. Forging a line gains nothing: only the
right answer counts, and a function could have returned it. A program does see all arguments at once, and keeps its
state from call to call. A test of a whole program gives it standard input and compares its output, outside as well.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.errors import InputError
from burnish.sandbox.names import STRONGEST
from burnish.sandbox.run import DEFAULT, Limits, Verdict, run_request


@dataclass(frozen=True, slots=True)
class Call:
    """One unit test: a function of the program, positional arguments and the expected answer, all of JSON types.

    With ``or_listed`` a list of the expected answer alone is right too.
    """

    function: str
    arguments: tuple[Any, ...]
    expected: Any
    or_listed: bool = False


@dataclass(frozen=True, slots=True)
class ExpressionTest:
    """A unit test: an expression with the program's functions, and its value, of JSON types (see ``program.plain``)."""

    expression: str
    expected: Any


@dataclass(frozen=True, slots=True)
class InputTest:
    """A test of a whole program: its standard input, and the output that it should print."""

    stdin: str
    expected: str


ProgramTest = Call | ExpressionTest | InputTest

MOST_TIMEOUTS = 2
"""After so many tests that run out of time the others are not run, and fail: a program that hangs would take hours."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a program's tests: one value per test, and a verdict.

    Of several processes, the verdict is that of one that broke a limit, or of the last.
    """

    passed: tuple[bool, ...]
    verdict: Verdict


def run_tests(
    program: str, tests: Sequence[ProgramTest], *, limits: Limits = DEFAULT, layer: str = STRONGEST
) -> Outcome:
    """Run a program's tests, each within the limits.

    A test of standard input has a process of its own. Calls are made in order in one process, which is fast; those that
    it has not answered when it is ended are made again, each in a process of its own.

    Raises:
        InputError: JSON cannot represent the arguments or the expected answer, or the layer does not exist.
    """
    for test in tests:
        if isinstance(test, Call):
            _check(test)
    # Room for each right answer, and for as much again.
    longest = max((len(json.dumps(test.expected)) for test in tests), default=0)
    limits = replace(limits, output=max(limits.output, 2 * longest))
    together = [index for index, test in enumerate(tests) if not isinstance(test, InputTest)]
    passed = [False] * len(tests)
    waiting = [index for index in range(len(tests)) if index not in together]
    verdict = Verdict("ok", "")
    timeouts = 0
    if together:
        results, verdict = _answer([tests[index] for index in together], program, limits, layer)
        for index, result in zip(together, results, strict=True):
            passed[index] = bool(result)
        unanswered = [index for index, result in zip(together, results, strict=True) if result is None]
        if verdict.status in ("timeout", "memory", "killed") and len(together) > 1:
            waiting += unanswered
    for index in sorted(waiting):
        if timeouts >= MOST_TIMEOUTS:
            break
        test = tests[index]
        if isinstance(test, InputTest):
            request = {"source": program, "name": "program.py", "stdin": test.stdin}
            own, _ = run_request(request, limits=limits, layer=layer)
            passed[index] = own.status == "ok" and equal_output(own.stdout, test.expected)
        else:
            results, own = _answer([test], program, limits, layer)
            passed[index] = bool(results[0])
        # The verdict says whether another run would give the same, so one broken limit is enough.
        verdict = verdict if verdict.status in ("timeout", "killed") and own.status != "refused" else own
        if own.status == "refused":
            break
        timeouts += own.status == "timeout"
    return Outcome(tuple(passed), verdict)


def _answer(
    tests: Sequence[ProgramTest], program: str, limits: Limits, layer: str
) -> tuple[list[bool | None], Verdict]:
    """Return for each test whether the answer of the program is right, None without an answer, and the verdict."""
    questions = [
        {"function": test.function, "arguments": list(test.arguments)}
        if isinstance(test, Call)
        else {"expression": test.expression}
        for test in tests
        if not isinstance(test, InputTest)
    ]
    request = {"source": program, "name": "program.py", "calls": questions}
    verdict, answered = run_request(request, limits=limits, answers=True, layer=layer)
    lines: list[bytes | None] = [*answered.split(b"\n")[:-1][: len(tests)]]
    lines += [None] * (len(tests) - len(lines))
    return [
        None
        if line is None
        else _is_correct(line, test.expected)
        or (isinstance(test, Call) and test.or_listed and _is_correct(line, [test.expected]))
        for line, test in zip(lines, tests, strict=True)
    ], verdict


def equal_output(printed: str, expected: str) -> bool:
    """Return whether two outputs have the same lines of words; decimal numbers may differ by a relative 1e-6."""
    first, second = ([line.split() for line in text.strip().splitlines()] for text in (printed, expected))
    return len(first) == len(second) and all(
        len(words) == len(others) and all(map(_same_word, words, others))
        for words, others in zip(first, second, strict=True)
    )


def _same_word(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if len(word) > 40 or not re.fullmatch(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?", expected):
        return False
    try:
        return math.isclose(float(word), float(expected), rel_tol=1e-6, abs_tol=1e-9)
    except ValueError:
        return False


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
