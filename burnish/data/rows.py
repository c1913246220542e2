"""The kinds of rows to learn from, and which side of the split a row is on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from burnish.errors import InputError


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a dialogue."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation; the assistant's turns are learnt, the others are read.

    Attributes:
        unit: hexadecimal digest of what the row must not share with the other side of the split; see ``digest``. Rows
            of one unit lie on one side, and are one unit of the statistics.
    """

    turns: tuple[Turn, ...]
    unit: str


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the completion that is learnt. Plain text has an empty prompt."""

    prompt: str
    completion: str
    unit: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of a prompt, one preferred.

    Attributes:
        margin: how much better a reward model shall find the preferred one, where somebody said so.
    """

    prompt: str
    chosen: str
    rejected: str
    unit: str
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A completion that somebody found desirable or not."""

    prompt: str
    completion: str
    desirable: bool
    unit: str


Row = Dialogue | Text | Pair | Judged
R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be used: its place in the source, and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """What a source gave.

    Attributes:
        rows: usable, in the source's order.
        broken: those that were not; never left out without being listed.
        repeats: rows equal to an earlier one, kept once.
        origin: where they came from, for readers.
    """

    rows: tuple[Row, ...]
    broken: tuple[Broken, ...] = ()
    repeats: int = 0
    origin: str = ""


def digest(*parts: str) -> str:
    """SHA-256 of the parts, hexadecimal; the parts' borders count."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def held_out(unit: str, percent: int) -> bool:
    """Whether a unit is held out: ``int(first 8 digits, 16) % 100 < percent``, as in the news task."""
    return int(unit[:8], 16) % 100 < percent


def split(rows: Sequence[R], percent: int) -> tuple[list[R], list[R]]:
    """Training and held-out rows, each in the source's order.

    Raises:
        InputError: a side is empty, or there are fewer than two held-out units, which no interval could be drawn from.
    """
    sides: tuple[list[R], list[R]] = ([], [])
    for row in rows:
        sides[held_out(row.unit, percent)].append(row)
    units = len({row.unit for row in sides[1]})
    if not sides[0] or units < 2:
        found = "no training row" if not sides[0] else f"{units} held-out prompt{'' if units == 1 else 's'}"
        change = "smaller" if not sides[0] else "larger"
        raise InputError(
            f"data.held_out_percent = {percent} leaves {found} of {len(rows)} rows: choose a {change} number or "
            "give more rows"
        )
    return sides


def unrepeated(rows: Sequence[Row]) -> tuple[tuple[Row, ...], int]:
    """The rows without exact repeats, and how many there were."""
    unique = tuple(dict.fromkeys(rows))
    return unique, len(rows) - len(unique)
