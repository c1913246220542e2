"""The reward for programs that pass unit tests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from burnish.errors import BurnishError, InputError
from burnish.rewards.library.code_blocks import extract_body, extract_program
from burnish.rewards.library.program_tests import canonical_tests, read_tests
from burnish.rewards.registry import reward
from burnish.sandbox.answers import run_tests
from burnish.sandbox.layers import check_layer, get_runner
from burnish.sandbox.names import LANDLOCK, NAMESPACES, NONE, STRONGEST, TITLES, WASM
from burnish.sandbox.run import run
from burnish.sandbox.verdict import Limits, Unavailable
from burnish.system.machine import cores
from burnish.types import Completion

_CACHE_SIZE = 1024
_Job: TypeAlias = tuple[str, str, Limits, str]
"""Program, tests, limits, and the layer of the sandbox."""
_CACHE: dict[_Job, float] = {}
"""Share of tests passed; the oldest entries are dropped first."""
_NUMPY_PROBE = "import numpy\nnumpy.ones((999, 999)) @ numpy.ones(999)"
_UNLESS = (
    f'a model\'s program is not run without a sandbox unless the [[reward]] sets sandbox = "{NONE}" '
    "(docs/en/sandbox.md)"
)


def _check_options(*, seconds: float, memory: int, sandbox: str, numpy: bool, **_: object) -> None:
    try:
        check_layer(sandbox)
        Limits(seconds=seconds, memory=memory)
    except InputError as error:
        raise InputError(f"'unit_tests': {error}") from error
    if numpy and sandbox == WASM:
        raise InputError(
            f'\'unit_tests\': sandbox = "{WASM}" has no numpy: set "{NAMESPACES}" or "{LANDLOCK}", or numpy = false'
        )


def _preflight(
    *, seconds: float = 5.0, memory: int = 256, sandbox: str = STRONGEST, numpy: bool = False, **_: object
) -> tuple[str, str]:
    """Start the sandbox; return a message that names its layer, and its level. Raises BurnishError if none works."""
    try:
        layer = get_runner(sandbox, numpy=numpy).layer
    except Unavailable as error:
        raise BurnishError(f"reward 'unit_tests': {error}; {_UNLESS}") from error
    if numpy:
        verdict = run(_NUMPY_PROBE, limits=Limits(seconds=seconds, memory=memory, numpy=True), layer=sandbox)
        if verdict.status != "ok":
            last = (verdict.stderr.strip().splitlines() or [verdict.reason])[-1]
            raise BurnishError(
                f"reward 'unit_tests': numpy does not work with memory = {memory} ({last}): set a larger "
                "one, such as 256, or numpy = false"
            )
    if layer == NONE:
        return f'sandbox = "{NONE}": the model\'s programs run with all rights of this user', "warning"
    return f"sandbox: {TITLES[layer]}{', with numpy' if numpy else ''}", "info"


@reward(needs_whole="half a program passes no test", check_options=_check_options, preflight=_preflight)
def unit_tests(
    completions: Sequence[Completion],
    *,
    whole: bool = False,
    seconds: float = 5.0,
    memory: int = 256,
    sandbox: str = STRONGEST,
    numpy: bool = False,
) -> list[float]:
    """The share of the prompt's unit tests that the program in a text passes, in [0, 1].

    The program is the last fenced block of Python in the text (see ``extract_program``). If the prompt's
    metadata has a ``head`` (the beginning of a function), the program is the head followed by the lines of the text
    that belong to its body. Programs run in the sandbox, which never sees the expected answers, as many at once as
    there are cores.

    Fails by: answering only the tests' inputs, all of which the program sees; a constant passes a few tests. Hold back
    tests that are not trained on.

    Args:
        completions: a prompt's metadata ``tests``, or else its reference, has the tests as JSON: a list of calls, each
            of a function of the program with positional arguments and the expected answer, in JSON's types (a tuple
            equals a list); ``inputs`` and ``outputs`` of the whole program or of the function ``fn_name`` (APPS, TACO);
            rows with ``input``, ``output`` and ``testtype`` (LiveCodeBench); or asserts (MBPP).
            Held-out metrics compare texts with the reference, but not with the metadata.
        whole: 1 if every test passes, else 0: the pass rate that others report.
        seconds: wall-clock time for each test; after two that run out of it the others fail.
        memory: MB of address space.
        sandbox: "strongest" of the layers that work on this machine, "namespaces", "landlock", "wasm", or "none": only
            limits, for a machine that may be lost.
        numpy: whether programs can import numpy, except in the layer "wasm". Its numbers and arrays equal JSON's.

    Raises BurnishError if the sandbox cannot run here: a program that was not run has no score.

    Source: functional correctness as in HumanEval (Chen et al. 2021, arXiv 2107.03374), the share of tests as in APPS
    (Hendrycks et al. 2021, arXiv 2105.09938).
    """
    jobs: list[_Job] = []
    limits = Limits(seconds=seconds, memory=memory, numpy=numpy)
    for completion in completions:
        prompt = completion.prompt
        tests = canonical_tests(prompt)
        read_tests(prompt.id, tests)
        head = prompt.metadata.get("head")
        program = extract_program(completion.text) if head is None else f"{head}{extract_body(completion.text)}"
        jobs.append((program, tests, limits, sandbox))
    shares = _shares(jobs)
    return [float(shares[job] == 1.0) if whole else shares[job] for job in jobs]


def _shares(jobs: Sequence[_Job]) -> dict[_Job, float]:
    """Return the share of its tests that each program passes.

    Results are cached, so that two rewards with one program run it once. A program that ran out of time or was killed
    is run again: its end depends on what else the machine was doing.
    """
    shares = {job: _CACHE[job] for job in jobs if job in _CACHE}
    missing = [job for job in dict.fromkeys(jobs) if job not in shares]
    if not missing:
        return shares
    # The threads only wait for the programs, which are processes.
    with ThreadPoolExecutor(min(len(missing), cores())) as pool:
        for job, (share, repeatable) in zip(missing, pool.map(_share, missing), strict=True):
            shares[job] = share
            if repeatable:
                while len(_CACHE) >= _CACHE_SIZE:
                    del _CACHE[next(iter(_CACHE))]
                _CACHE[job] = share
    return shares


def _share(job: _Job) -> tuple[float, bool]:
    """Return the share of the tests that pass, and whether another run would give the same."""
    program, tests, limits, sandbox = job
    read = read_tests("", tests)
    outcome = run_tests(program, read, limits=limits, layer=sandbox)
    if outcome.verdict.status == "refused":
        raise BurnishError(f"reward 'unit_tests': {outcome.verdict.reason}; {_UNLESS}")
    return sum(outcome.passed) / len(read), outcome.verdict.status not in ("timeout", "killed")
