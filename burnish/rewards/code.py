"""Rewards for text that is a program."""

from __future__ import annotations

import json
import re

from burnish.errors import BurnishError, InputError
from burnish.sandbox.answers import Call, run_tests
from burnish.sandbox.run import Limits
from burnish.types import Completion

_FENCED = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)(?:^```|\Z)", re.S | re.M)
_UNOPENED = re.compile(r"\s*((?:def|import|from|class|@\w)\b.*?)(?:^```|\Z)", re.S | re.M)
_FORM = '{"calls": [{"function": "add", "arguments": [1, 2], "expected": 3}]}'
_KEPT = 1024
_KNOWN: dict[tuple[str, str, float, int], float] = {}
"""Program, tests and limits -> share; the oldest go first."""


def unit_tests(completion: Completion, *, whole: bool = False, seconds: float = 5.0, memory: int = 256) -> float:
    """The share of its prompt's unit tests that the program in the text passes, in [0, 1].

    The program is the first fenced block of the text, or all of it where there is none (see ``program_in``), and runs in
    the sandbox; what is expected never enters there. Where the prompt's metadata has a ``head`` (the beginning of a
    function), the program is the head and what of the text belongs to its body. Fails by: answering the tests' inputs and
    no others, since it sees them all; a few tests are passed by a constant. Hold back tests that are not trained on.

    Args:
        completion: what was sampled. Its prompt's metadata ``tests``, or else its reference, is JSON: a list of calls, each
            of a function of the program with positional arguments and the answer that is expected, in JSON's types (a
            tuple compares as a list). A reference is taken for true text by the held-out metrics, the metadata is not.
        whole: 1 where every test is passed, else 0: the pass rate that others report.
        seconds: of wall-clock time for the program and all its tests.
        memory: MB of address space.

    Raises:
        InputError: the tests are missing or not of that form.
        BurnishError: the sandbox cannot run here; a program that was not run has no score.
    """
    prompt = completion.prompt
    tests = str(prompt.metadata.get("tests") or prompt.reference or "")
    _calls(prompt.id, tests)
    head = prompt.metadata.get("head")
    program = program_in(completion.text) if head is None else f"{head}{body_in(completion.text)}"
    share = _share(program, tests, seconds, memory)
    return float(share == 1.0) if whole else share


unit_tests.needs_whole = "half a program passes no test"  # type: ignore[attr-defined]


def program_in(text: str) -> str:
    """The first fenced block of a text, closed or not; what stands before the first fence where that begins as a program
    does (as if the fence had been opened before the text); or the text itself."""
    unopened = _UNOPENED.match(text)
    if unopened:
        return unopened[1]
    found = _FENCED.search(text)
    return found[1] if found else text


def body_in(text: str) -> str:
    """The lines of a text up to the first that is not indented: a language model goes on after a function's end."""
    body = []
    for line in text.splitlines(keepends=True):
        if line.strip() and not line[0].isspace():
            break
        body.append(line)
    return "".join(body)


def _share(program: str, tests: str, seconds: float, memory: int) -> float:
    """The share of the tests that are passed. Two parts of a reward that ask about one program run it once, unless it
    ran out of time or was killed: that hangs on what else this machine was doing, and the next run may end otherwise.
    """
    key = (program, tests, seconds, memory)
    if key in _KNOWN:
        return _KNOWN[key]
    calls = _calls("", tests)
    outcome = run_tests(program, calls, limits=Limits(seconds=seconds, memory=memory))
    if outcome.verdict.status == "refused":
        raise BurnishError(f"reward 'unit_tests': {outcome.verdict.reason}")
    share = sum(outcome.passed) / len(calls)
    if outcome.verdict.status not in ("timeout", "killed"):
        while len(_KNOWN) >= _KEPT:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[key] = share
    return share


def _calls(prompt_id: str, tests: str) -> list[Call]:
    try:
        rows = json.loads(tests)["calls"]
        calls = [Call(row["function"], tuple(row["arguments"]), row["expected"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"reward 'unit_tests': the tests of prompt '{prompt_id}' (its reference) must be JSON such as {_FORM}"
        ) from error
    if not calls or not all(isinstance(call.function, str) for call in calls):
        raise InputError(f"reward 'unit_tests': prompt '{prompt_id}' needs at least one call, as in {_FORM}")
    return calls
