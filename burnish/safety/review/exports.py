"""Judgements as rows that ``burnish reward-model`` and ``burnish prefer`` read."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from burnish.safety.review.store import APPROVE, FIRST, PAIR, SECOND, TEXT, Judgement, ReviewItem
from burnish.system.files import explained, write_text


def preference_rows(judgements: Iterable[Judgement]) -> Iterator[dict[str, Any]]:
    """Yield a row of ``prompt``, ``chosen`` and ``rejected`` per pair of which most reviewers preferred one text."""
    for item, votes in _votes(judgements, PAIR):
        if votes[FIRST] == votes[SECOND] or votes.most_common(1)[0][0] not in (FIRST, SECOND):
            continue
        chosen, rejected = item.texts if votes[FIRST] > votes[SECOND] else item.texts[::-1]
        yield {"prompt": _prompt(item), "chosen": chosen, "rejected": rejected}


def labelled_rows(judgements: Iterable[Judgement]) -> Iterator[dict[str, Any]]:
    """Yield a row of ``prompt``, ``completion`` and ``label`` per flagged text; one rejection makes the label false."""
    for item, votes in _votes(judgements, TEXT):
        yield {"prompt": _prompt(item), "completion": item.texts[0], "label": set(votes) == {APPROVE}}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSONL and return their number, without rows that are not UTF-8 text (half a surrogate pair)."""
    lines = []
    for row in rows:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if line.isascii() or line.encode("utf-8", "ignore").decode() == line:
            lines.append(line)
    with explained(f"cannot write {path}"):
        write_text(path, "".join(lines))
    return len(lines)


def _votes(judgements: Iterable[Judgement], kind: str) -> Iterator[tuple[ReviewItem, Counter[str]]]:
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    items = {}
    for one in judgements:
        if one.item.kind == kind:
            votes[one.item.id][one.answer.label] += 1
            items[one.item.id] = one.item
    for item_id, item in items.items():
        yield item, votes[item_id]


def _prompt(item: ReviewItem) -> str | list[Any]:
    return list(item.messages) or item.prompt
