"""Storage of a review: reviewers, items that one reviewer holds at a time, and judgements."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update

from burnish.errors import InputError
from burnish.safety.review.database import ITEMS, JUDGEMENTS, REVIEWERS, SETTINGS

PAIR, TEXT = "pair", "text"
"""Kinds of items: two completions of a prompt to choose from, and one completion to approve or reject."""
FIRST, SECOND, TIE, APPROVE, REJECT = "first", "second", "tie", "approve", "reject"
LABELS: Mapping[str, tuple[str, ...]] = {PAIR: (FIRST, SECOND, TIE), TEXT: (APPROVE, REJECT)}
TAGS = ("unsafe", "untrue", "off_topic", "repetitive", "language")
BEST_RATING = 5
LEASE_SECONDS = 900.0
_CHUNK = 1000


class AnswerRefused(InputError):
    """An answer to an item that the reviewer does not hold any more."""


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """A prompt with one or two completions.

    Attributes:
        reason: why it was queued: "flagged", "disagreement", "uncertain" or "random".
        messages: the prompt as a conversation, if it is one.
        details: facts that are recorded with the item, such as step, flags and reward parts.
    """

    kind: str
    reason: str
    prompt: str
    texts: tuple[str, ...]
    messages: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0

    @property
    def content(self) -> str:
        # ASCII: a NUL or half a surrogate pair, which a model may write, is not text to a database.
        return json.dumps([self.prompt, self.texts, self.messages, self.details])

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps([self.kind, self.prompt, self.texts, self.messages]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Visitor:
    """A reviewer in one browser, or in one program: the holder of a lease."""

    reviewer_id: int
    name: str
    holder: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A label of ``LABELS``, a rating from 1 to 5 of each text or None, and tags; in the order of the item's texts."""

    label: str
    ratings: tuple[int | None, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer to an item, with the reviewer's name and the time in seconds since 1970."""

    item: ReviewItem
    reviewer: str
    answer: Answer
    created_at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Numbers of items by kind, in all and done, and each reviewer's number of judgements."""

    total: Mapping[str, int]
    done: Mapping[str, int]
    by_reviewer: Mapping[str, int]


class ReviewStore:
    """A review in a database; every method is one transaction.

    Args:
        clock: returns the time in seconds since 1970, from which leases are counted.
        lease_seconds: how long a reviewer has an item alone.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self.engine, self.clock, self.lease_seconds = engine, clock, lease_seconds

    def setting(self, name: str, default: str) -> str:
        """Return a stored value; store the default if it is new."""
        with self.engine.begin() as connection:
            value = connection.scalar(select(SETTINGS.c.value).where(SETTINGS.c.name == name))
            if value is None:
                connection.execute(insert(SETTINGS).values(name=name, value=default))
            return default if value is None else str(value)

    def replace_setting(self, name: str, value: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(SETTINGS).where(SETTINGS.c.name == name))
            connection.execute(insert(SETTINGS).values(name=name, value=value))

    def add_reviewer(self, name: str) -> str:
        """Return a new token of a reviewer, who is added if new; an earlier token ends. Only its hash is stored."""
        if not (0 < len(name) <= 40 and name.isprintable() and name.strip() == name):
            raise InputError(f"reviewer {name!r}: a name has 1 to 40 printable characters, without blanks at its ends")
        token = secrets.token_urlsafe(32)
        with self.engine.begin() as connection:
            changed = connection.execute(
                update(REVIEWERS).where(REVIEWERS.c.name == name).values(token_hash=token_hash(token))
            )
            if not changed.rowcount:
                connection.execute(
                    insert(REVIEWERS).values(name=name, token_hash=token_hash(token), created_at=self.clock())
                )
        return token

    def reviewers(self) -> list[str]:
        with self.engine.begin() as connection:
            return list(connection.scalars(select(REVIEWERS.c.name).order_by(REVIEWERS.c.id)))

    def visitor(self, token: str, session: str) -> Visitor | None:
        """Return the reviewer of a token in a session; None if the token is not valid."""
        statement = select(REVIEWERS.c.id, REVIEWERS.c.name).where(REVIEWERS.c.token_hash == token_hash(token))
        with self.engine.begin() as connection:
            row = connection.execute(statement).one_or_none()
        return Visitor(row.id, row.name, token_hash(f"{token} {session}")) if row else None

    def add_items(self, items: Iterable[ReviewItem], wanted: Callable[[ReviewItem], int] = lambda item: 1) -> int:
        """Append items that are not there yet, and return their number; ``wanted`` is each one's number of judgements."""
        added, remaining = 0, iter(items)
        with self.engine.begin() as connection:
            position = connection.scalar(select(func.max(ITEMS.c.position))) or 0
            while chunk := {item.key: item for item in islice(remaining, _CHUNK)}:
                known = set(connection.scalars(select(ITEMS.c.key).where(ITEMS.c.key.in_(chunk))))
                rows = [
                    {
                        "key": key, "kind": item.kind, "reason": item.reason, "content": item.content, "open": True,
                        "position": position + index, "wanted": wanted(item), "judged": 0,
                    }
                    for index, (key, item) in enumerate(chunk.items(), start=1) if key not in known
                ]  # fmt: skip
                position += len(chunk)
                added += len(rows)
                if rows:
                    connection.execute(insert(ITEMS), rows)
        if added and self.engine.dialect.name == "postgresql":  # so that items are counted from an index at once
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE item")
        return added

    def next_item(self, visitor: Visitor) -> ReviewItem | None:
        """Lend the visitor an item that nobody else holds: the one held already, or the next; None if none is left."""
        now = self.clock()
        # By the lease alone: with more conditions, a planner may read the whole queue in order.
        held = select(ITEMS.c.id, ITEMS.c.open, ITEMS.c.leased_until).where(ITEMS.c.leased_by == visitor.holder)
        free = (
            select(ITEMS.c.id).where(ITEMS.c.open.is_(True), ~_judged_by(visitor))
            .where(or_(ITEMS.c.leased_until.is_(None), ITEMS.c.leased_until <= now))
            .order_by(ITEMS.c.position).limit(1).with_for_update(skip_locked=True)
        )  # fmt: skip
        with self.engine.begin() as connection:
            mine = (row.id for row in connection.execute(held) if row.open and row.leased_until > now)
            item_id = next(mine, None) or connection.scalar(free)
            if item_id is None:
                return None
            self._lend(connection, item_id, visitor)
            return _item(connection.execute(select(ITEMS).where(ITEMS.c.id == item_id)).one())

    def item(self, item_id: int) -> ReviewItem:
        """Return an item. Raises InputError if there is none of this number."""
        with self.engine.begin() as connection:
            row = connection.execute(select(ITEMS).where(ITEMS.c.id == item_id)).one_or_none()
        if row is None:
            raise InputError(f"there is no item {item_id}")
        return _item(row)

    def judge(self, visitor: Visitor, item_id: int, answer: Answer, *, shown_first: int = 0) -> None:
        """Record an answer to the item that the visitor holds; the same visitor's second answer to it changes nothing.

        Raises:
            AnswerRefused: another reviewer has the item, or had it meanwhile.
            InputError: the answer does not fit the item.
        """
        with self.engine.begin() as connection:
            row = connection.execute(select(ITEMS).where(ITEMS.c.id == item_id).with_for_update()).one()
            _check(answer, row.kind)
            if connection.scalar(select(_judged_by(visitor)).where(ITEMS.c.id == item_id)):
                return
            if not row.open or row.leased_by != visitor.holder:
                raise AnswerRefused("the time for this item ended, and it went to another reviewer")
            values = {
                "item_id": item_id, "reviewer_id": visitor.reviewer_id, "holder": visitor.holder, "label": answer.label,
                "shown_first": shown_first, "ratings": json.dumps(answer.ratings), "tags": json.dumps(answer.tags),
                "created_at": self.clock(),
            }  # fmt: skip
            connection.execute(insert(JUDGEMENTS).values(values))
            _count(connection, row, 1)

    def skip(self, visitor: Visitor, item_id: int) -> None:
        """Move an item that the visitor holds to the end of the queue."""
        with self.engine.begin() as connection:
            last = connection.scalar(select(func.max(ITEMS.c.position))) or 0
            connection.execute(
                update(ITEMS).where(ITEMS.c.id == item_id, ITEMS.c.leased_by == visitor.holder)
                .values(position=last + 1, leased_by=None, leased_until=None)
            )  # fmt: skip

    def undo(self, visitor: Visitor) -> bool:
        """Take the visitor's latest judgement back and lend its item again; return whether there was one."""
        latest = (
            select(JUDGEMENTS.c.id, JUDGEMENTS.c.item_id)
            .where(JUDGEMENTS.c.holder == visitor.holder, JUDGEMENTS.c.reviewer_id == visitor.reviewer_id)
            .where(JUDGEMENTS.c.undone_at.is_(None)).order_by(JUDGEMENTS.c.id.desc()).limit(1)
        )  # fmt: skip
        with self.engine.begin() as connection:
            judgement = connection.execute(latest).one_or_none()
            if judgement is None:
                return False
            chosen = select(ITEMS).where(ITEMS.c.id == judgement.item_id).with_for_update()
            row = connection.execute(chosen).one()
            now = self.clock()
            connection.execute(update(JUDGEMENTS).where(JUDGEMENTS.c.id == judgement.id).values(undone_at=now))
            leased = row.leased_until is not None and row.leased_until > now and row.leased_by != visitor.holder
            _count(connection, row, -1, keep_lease=leased)
            if not leased:
                connection.execute(
                    update(ITEMS).where(ITEMS.c.leased_by == visitor.holder).values(leased_by=None, leased_until=None)
                )
                self._lend(connection, row.id, visitor)
            return True

    def progress(self) -> Progress:
        counts = select(ITEMS.c.kind, ITEMS.c.open, func.count()).group_by(ITEMS.c.kind, ITEMS.c.open)
        by_reviewer = (
            select(REVIEWERS.c.name, func.count(JUDGEMENTS.c.id))
            .outerjoin(JUDGEMENTS, and_(JUDGEMENTS.c.reviewer_id == REVIEWERS.c.id, JUDGEMENTS.c.undone_at.is_(None)))
            .group_by(REVIEWERS.c.id, REVIEWERS.c.name).order_by(REVIEWERS.c.id)
        )  # fmt: skip
        total, done = dict.fromkeys(LABELS, 0), dict.fromkeys(LABELS, 0)
        with self.engine.begin() as connection:
            for kind, is_open, count in connection.execute(counts):
                total[kind] += count
                done[kind] += 0 if is_open else count
            return Progress(total, done, {name: count for name, count in connection.execute(by_reviewer)})

    def judgements(self) -> Iterator[Judgement]:
        """Yield the judgements that were not taken back, in the order of the items and then of time."""
        statement = (
            select(JUDGEMENTS, REVIEWERS.c.name, ITEMS.c.kind, ITEMS.c.reason, ITEMS.c.content)
            .join(ITEMS, ITEMS.c.id == JUDGEMENTS.c.item_id).join(REVIEWERS, REVIEWERS.c.id == JUDGEMENTS.c.reviewer_id)
            .where(JUDGEMENTS.c.undone_at.is_(None)).order_by(JUDGEMENTS.c.item_id, JUDGEMENTS.c.id)
        )  # fmt: skip
        with self.engine.begin() as connection:
            rows: Sequence[Any] = connection.execute(statement).all()
        for row in rows:
            answer = Answer(row.label, tuple(json.loads(row.ratings)), tuple(json.loads(row.tags)))
            yield Judgement(_item(row, row.item_id), row.name, answer, row.created_at)

    def _lend(self, connection: Connection, item_id: int, visitor: Visitor) -> None:
        values = {"leased_by": visitor.holder, "leased_until": self.clock() + self.lease_seconds}
        connection.execute(update(ITEMS).where(ITEMS.c.id == item_id).values(values))


def token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _item(row: Any, item_id: int | None = None) -> ReviewItem:
    prompt, texts, messages, details = json.loads(row.content)
    return ReviewItem(row.kind, row.reason, prompt, tuple(texts), tuple(messages), details, item_id or row.id)


def _judged_by(visitor: Visitor) -> Any:
    """Return the condition that an item has a judgement of the visitor."""
    mine = JUDGEMENTS.c.reviewer_id == visitor.reviewer_id
    live = JUDGEMENTS.c.undone_at.is_(None)
    return select(JUDGEMENTS.c.id).where(JUDGEMENTS.c.item_id == ITEMS.c.id, mine, live).correlate(ITEMS).exists()


def _count(connection: Connection, row: Any, change: int, *, keep_lease: bool = False) -> None:
    """Change an item's number of judgements, and end its lease."""
    judged = row.judged + change
    values: dict[str, Any] = {"judged": judged, "open": judged < row.wanted}
    if not keep_lease:
        values |= {"leased_by": None, "leased_until": None}
    connection.execute(update(ITEMS).where(ITEMS.c.id == row.id).values(values))


def _check(answer: Answer, kind: str) -> None:
    if answer.label not in LABELS[kind]:
        raise InputError(f"label '{answer.label}': write one of {', '.join(LABELS[kind])}")
    if unknown := set(answer.tags) - set(TAGS):
        raise InputError(f"tag '{min(unknown)}': the tags are {', '.join(TAGS)}")
    texts = 2 if kind == PAIR else 1
    if len(answer.ratings) not in (0, texts) or any(
        one is not None and one not in range(1, BEST_RATING + 1) for one in answer.ratings
    ):
        raise InputError(f"ratings: write {texts} from 1 to {BEST_RATING}, or null")
