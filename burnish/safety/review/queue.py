"""Choice of the samples that people should see, from the rows of a run's samples.jsonl."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import pstdev
from typing import Any

from burnish.reports.wording import finite
from burnish.safety.review.store import PAIR, TEXT, ReviewItem

HARMLESS_FLAGS = frozenset({"empty", "truncated"})
"""Flags of samples.jsonl that are about length, not about content."""
FILTER_PART = "content_filter"
"""Reward part of the content filter: 0 for a text that passes, lower for one that is flagged or blocked."""
LARGEST_GROUP = 16
"""Samples of a group that are compared; their pairs grow with the square."""
DETAILS = ("step", "prompt_id", "reward", "flags", "parts")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How many pairs are queued, and how they are chosen; every flagged text is queued.

    Attributes:
        pairs: in all, at most one per prompt and step.
        random: share of the pairs that is drawn by chance. Half of the rest are those where reward parts disagree most,
            half those where the rewards differ least.
    """

    pairs: int = 500
    random: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Two rows of one group, with how strongly their reward parts disagree and how far apart their rewards are."""

    rows: tuple[Row, Row]
    disagreement: float
    distance: float


def choose_items(rows: Iterable[Row], settings: QueueSettings) -> list[ReviewItem]:
    """Return the items to judge: flagged texts first, then pairs in random order."""
    rows = [row for row in rows if isinstance(row, Mapping) and _is_usable(row)]
    flagged = {one.key: one for row in rows if is_flagged(row) for one in [_text_item(row)]}
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[repr((row.get("step"), row.get("prompt_id")))].append(row)
    scales = _scales(rows)
    candidates = [_pairs(group, scales) for group in groups.values()]
    pairs = list(_choose_pairs([group for group in candidates if group], settings))
    random.Random(f"{settings.seed} order").shuffle(pairs)
    return [*flagged.values(), *pairs]


def is_flagged(row: Row) -> bool:
    """Whether the content filter flagged or blocked a row of samples.jsonl."""
    flags = row.get("flags")
    part = finite(_parts(row).get(FILTER_PART))
    named = isinstance(flags, list) and any(str(flag) not in HARMLESS_FLAGS for flag in flags)
    return named or (part is not None and part < 0)


def _is_usable(row: Row) -> bool:
    text = row.get("completion")
    return isinstance(row.get("prompt"), str) and isinstance(text, str) and bool(text.strip())


def _parts(row: Row) -> Mapping[str, Any]:
    parts = row.get("parts")
    return parts if isinstance(parts, Mapping) else {}


def _scales(rows: Sequence[Row]) -> dict[str, float]:
    """Return the standard deviation of each reward part, and of the reward under ""; constant ones are left out."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in [("", row.get("reward")), *_parts(row).items()]:
            if (number := finite(value)) is not None:
                values[name].append(number)
    scales = {}
    for name, numbers in values.items():
        unit = max(map(abs, numbers)) or 1.0  # squares of the largest numbers would overflow
        if (deviation := unit * pstdev([one / unit for one in numbers])) > 0:
            scales[name] = deviation
    return scales


def _pairs(group: Sequence[Row], scales: Mapping[str, float]) -> list[_Candidate]:
    distinct = list({row["completion"]: row for row in group}.values())[:LARGEST_GROUP]
    return [_candidate(first, second, scales) for first, second in combinations(distinct, 2)]


def _candidate(first: Row, second: Row, scales: Mapping[str, float]) -> _Candidate:
    """Compare two rows: they disagree as strongly as the weaker of the parts that are most for and most against."""
    differences = [
        a / scales[name] - b / scales[name]
        for name in _parts(first)
        if name in scales
        and (a := finite(_parts(first).get(name))) is not None
        and (b := finite(_parts(second).get(name))) is not None
    ]
    disagreement = min(max(differences, default=0.0), -min(differences, default=0.0))
    rewards = finite(first.get("reward")), finite(second.get("reward"))
    distance = math.inf
    if rewards[0] is not None and rewards[1] is not None:
        distance = abs(rewards[0] / scales.get("", 1.0) - rewards[1] / scales.get("", 1.0))
    return _Candidate((first, second), disagreement, distance)


def _choose_pairs(groups: list[list[_Candidate]], settings: QueueSettings) -> Iterator[ReviewItem]:
    """Yield pairs of different groups: the chance ones first, so that the other criteria do not bias them."""
    rng = random.Random(f"{settings.seed} chance")
    order = list(range(len(groups)))
    rng.shuffle(order)
    count = min(settings.pairs, len(groups))
    for index in order[: round(count * settings.random)]:
        yield _pair_item(rng.choice(groups[index]), "random")
    left = [groups[index] for index in order[round(count * settings.random) :]]
    disagreeing = sorted(
        ((max(group, key=lambda one: one.disagreement), index) for index, group in enumerate(left)),
        key=lambda one: -one[0].disagreement,
    )
    half = (count - round(count * settings.random) + 1) // 2
    taken = {index for candidate, index in disagreeing[:half] if candidate.disagreement > 0}
    for candidate, index in disagreeing:
        if index in taken:
            yield _pair_item(candidate, "disagreement")
    rest = [min(group, key=lambda one: one.distance) for index, group in enumerate(left) if index not in taken]
    rest.sort(key=lambda one: one.distance)
    for candidate in rest[: count - round(count * settings.random) - len(taken)]:
        yield _pair_item(candidate, "uncertain")


def _pair_item(candidate: _Candidate, reason: str) -> ReviewItem:
    first, second = candidate.rows
    details = {"step": first.get("step"), "prompt_id": first.get("prompt_id")}
    return ReviewItem(
        PAIR, reason, first["prompt"], (first["completion"], second["completion"]), _messages(first),
        {**details, "texts": [_details(first), _details(second)]},
    )  # fmt: skip


def _text_item(row: Row) -> ReviewItem:
    return ReviewItem(TEXT, "flagged", row["prompt"], (row["completion"],), _messages(row), _details(row))


def _details(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in DETAILS if row.get(name) is not None}


def _messages(row: Row) -> tuple[Mapping[str, Any], ...]:
    messages = row.get("messages")
    return tuple(messages) if isinstance(messages, list) and all(isinstance(one, Mapping) for one in messages) else ()
