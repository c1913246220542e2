"""A batch of cases that Hypothesis draws from a seed, runs, and shrinks if one fails."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from bench.fuzz.case import Case
from bench.fuzz.server import Fault, Outcome

SHRINKS = 80
"""Cases that are run to make a failure smaller."""
LONG_SHRINKS = 8
"""The same for one that took too long."""


@dataclass(frozen=True)
class Failure:
    """A case at its smallest, and what burnish did."""

    case: Case
    fault: Fault
    err: str


@dataclass
class Batch:
    """What came of a batch."""

    kind: str
    number: int
    counts: Counter[str] = field(default_factory=Counter)
    """cases, refused, accepted, commands, and each kind of fault."""
    failures: list[Failure] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """Signature of a fault -> cases that have it."""


class _Failed(Exception):
    pass


def run_batch(
    kind: str, number: int, cases: st.SearchStrategy[Case], run: Callable[[Case], Outcome], *, start: int, size: int,
    known: set[str],
) -> Batch:  # fmt: skip
    """Draw and run ``size`` cases. The same start, kind, number and size draw the same cases.

    Args:
        known: signatures of faults that are counted and not shrunk again; new ones are added.
    """
    batch, seen = Batch(kind, number), {}
    derived = int.from_bytes(hashlib.sha256(f"{start}/{kind}/{number}".encode()).digest()[:8], "big")
    while True:
        if failure := _drawn(batch, seen, cases, run, derived, size, known):
            known.add(failure.fault.signature)
            batch.failures.append(failure)
        else:
            return batch


def _drawn(
    batch: Batch, seen: dict[str, Outcome], cases: st.SearchStrategy[Case], run: Callable[[Case], Outcome],
    derived: int, size: int, known: set[str],
) -> Failure | None:  # fmt: skip
    """Draw the batch up to its first fault that is not known, and return that at its smallest."""
    smallest: list[Failure] = []
    left = [SHRINKS]

    @seed(derived)
    @settings(
        max_examples=size, database=None, deadline=None, phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), print_blob=False, verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(cases)
    def draw(case: Case) -> None:
        digest = case.digest
        if digest not in seen:
            if smallest and not left[0]:
                return
            left[0] -= bool(smallest)
            seen[digest] = outcome = run(case)
            _count(batch, outcome, shrinking=bool(smallest))
        outcome = seen[digest]
        fault = outcome.fault
        if fault and fault.signature not in known and (not smallest or smallest[0].fault.signature == fault.signature):
            # The last one that Hypothesis asks for is the smallest.
            if fault.kind == "limit" and not smallest:
                left[0] = LONG_SHRINKS
            smallest[:] = [Failure(case, fault, outcome.err)]
            raise _Failed

    try:
        draw()
    except _Failed:
        return smallest[0]
    return None


def _count(batch: Batch, outcome: Outcome, *, shrinking: bool) -> None:
    batch.counts["commands"] += len(outcome.statuses)
    if shrinking:
        batch.counts["shrinking"] += 1
        return
    batch.counts["cases"] += 1
    if outcome.fault:
        batch.counts[outcome.fault.kind] += 1
        batch.faults[outcome.fault.signature] += 1
    else:
        batch.counts["accepted" if outcome.accepted else "refused"] += 1
