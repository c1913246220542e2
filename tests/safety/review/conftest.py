"""A review in an SQLite file with a clock that a test moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.safety.review.database import open_database
from burnish.safety.review.store import APPROVE, PAIR, TEXT, TIE, Answer, ReviewItem, ReviewStore, Visitor


class FakeClock:
    """Seconds that stand still until a test adds some."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[ReviewStore]:
    opened = ReviewStore(open_database(tmp_path / "review.sqlite"), clock, lease_seconds=60)
    opened.setting("seed", "7")
    yield opened
    opened.engine.dispose()


def pair(number: int) -> ReviewItem:
    return ReviewItem(PAIR, "random", f"prompt {number}", (f"first {number}", f"second {number}"))


def flagged(number: int, flags: tuple[str, ...] = ("insult",)) -> ReviewItem:
    return ReviewItem(TEXT, "flagged", f"prompt {number}", (f"text {number}",), details={"flags": list(flags)})


def visitor(store: ReviewStore, name: str, session: str = "") -> Visitor:
    """Add a reviewer and return the visitor of the new token."""
    found = store.visitor(store.add_reviewer(name), session)
    assert found is not None
    return found


def judge_in_threads(store: ReviewStore, count: int) -> list[int]:
    """Let reviewers in threads judge until nothing is left, and return the number of each judged item."""
    people = [visitor(store, f"reviewer {number}") for number in range(count)]

    def work(person: Visitor) -> None:
        while item := store.next_item(person):
            store.judge(person, item.id, Answer(TIE if item.kind == PAIR else APPROVE))

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one.item.id for one in store.judgements()]
