"""Rewards for text that is a program."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from burnish.errors import BurnishError, InputError
from burnish.rewards.registry import reward
from burnish.sandbox.answers import Call, run_tests
from burnish.sandbox.layers import checked, standing
from burnish.sandbox.names import NONE, STRONGEST, TITLES
from burnish.sandbox.verdict import Limits, Unavailable
from burnish.system.machine import cores
from burnish.types import Completion

_FENCED = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)(?:^```|\Z)", re.S | re.M)
_UNOPENED = re.compile(r"\s*((?:def|import|from|class|@\w)\b.*?)(?:^```|\Z)", re.S | re.M)
_FORM = '{"calls": [{"function": "add", "arguments": [1, 2], "expected": 3}]}'
_KEPT = 1024
_Question: TypeAlias = tuple[str, str, float, int, str]
"""Program, tests, limits, and the layer of the sandbox."""
_KNOWN: dict[_Question, float] = {}
"""What was asked -> share; the oldest go first."""
_UNLESS = (
    f'what a model writes is not run without walls unless the [[reward]] says sandbox = "{NONE}", in so many words '
    "(docs/en/sandbox.md)"
)


def _check_options(*, seconds: float, memory: int, sandbox: str, **_: object) -> None:
    try:
        checked(sandbox)
        Limits(seconds=seconds, memory=memory)
    except InputError as error:
        raise InputError(f"'unit_tests': {error}") from error


def _preflight(*, sandbox: str = STRONGEST, **_: object) -> tuple[str, str]:
    """Puts the sandbox's walls up, and says which stand, with the level of the message.

    Raises:
        BurnishError: none do.
    """
    try:
        layer = standing(sandbox).layer
    except Unavailable as error:
        raise BurnishError(f"reward 'unit_tests': {error}; {_UNLESS}") from error
    if layer == NONE:
        return f'sandbox = "{NONE}": what the model writes is run with all that this user can do', "warning"
    return f"sandbox: {TITLES[layer]}", "info"


@reward(needs_whole="half a program passes no test", check_options=_check_options, preflight=_preflight)
def unit_tests(
    completions: Sequence[Completion],
    *,
    whole: bool = False,
    seconds: float = 5.0,
    memory: int = 256,
    sandbox: str = STRONGEST,
) -> list[float]:
    """The share of its prompt's unit tests that the program in each text passes, in [0, 1].

    The program is the first fenced block of the text, or all of it where there is none (see ``program_in``), and runs in
    the sandbox; what is expected never enters there. Where the prompt's metadata has a ``head`` (the beginning of a
    function), the program is the head and what of the text belongs to its body. Fails by: answering the tests' inputs and
    no others, since it sees them all; a few tests are passed by a constant. Hold back tests that are not trained on.
    As many programs run at once as there are cores.

    Args:
        completions: what was sampled. A prompt's metadata ``tests``, or else its reference, is JSON: a list of calls, each
            of a function of the program with positional arguments and the answer that is expected, in JSON's types (a
            tuple compares as a list). A reference is taken for true text by the held-out metrics, the metadata is not.
        whole: 1 where every test is passed, else 0: the pass rate that others report.
        seconds: of wall-clock time for the program and all its tests.
        memory: MB of address space.
        sandbox: "strongest" of the layers that hold here, "namespaces", "landlock", "wasm", or "none": limits alone, for
            whoever trusts the machine to be lost.

    Raises:
        InputError: the tests are missing or not of that form.
        BurnishError: the sandbox cannot run here; a program that was not run has no score.

    Source: functional correctness as of HumanEval (Chen et al. 2021, arXiv 2107.03374) and the share of tests as of APPS
    (Hendrycks et al. 2021, arXiv 2105.09938).
    """
    asked: list[_Question] = []
    for completion in completions:
        prompt = completion.prompt
        tests = str(prompt.metadata.get("tests") or prompt.reference or "")
        _calls(prompt.id, tests)
        head = prompt.metadata.get("head")
        program = program_in(completion.text) if head is None else f"{head}{body_in(completion.text)}"
        asked.append((program, tests, seconds, memory, sandbox))
    shares = _shares(asked)
    return [float(shares[question] == 1.0) if whole else shares[question] for question in asked]


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


def _shares(asked: Sequence[_Question]) -> dict[_Question, float]:
    """The share of its tests that each program passes. Two parts of a reward that ask about one program run it once,
    unless it ran out of time or was killed: that hangs on what else this machine was doing, and the next run may end
    otherwise.
    """
    found = {question: _KNOWN[question] for question in asked if question in _KNOWN}
    missing = [question for question in dict.fromkeys(asked) if question not in found]
    if not missing:
        return found
    # A thread only waits for a program, which is a process.
    with ThreadPoolExecutor(min(len(missing), cores())) as pool:
        for question, (share, lasting) in zip(missing, pool.map(_share, missing), strict=True):
            found[question] = share
            if lasting:
                while len(_KNOWN) >= _KEPT:
                    del _KNOWN[next(iter(_KNOWN))]
                _KNOWN[question] = share
    return found


def _share(question: _Question) -> tuple[float, bool]:
    """The share of the tests that are passed, and whether that will be so again."""
    program, tests, seconds, memory, sandbox = question
    calls = _calls("", tests)
    outcome = run_tests(program, calls, limits=Limits(seconds=seconds, memory=memory), layer=sandbox)
    if outcome.verdict.status == "refused":
        raise BurnishError(f"reward 'unit_tests': {outcome.verdict.reason}; {_UNLESS}")
    return sum(outcome.passed) / len(calls), outcome.verdict.status not in ("timeout", "killed")


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
