"""False alarms: innocent traps in two languages, news, and sentences for learners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.catalogue.fetch import fetch
from burnish.errors import BurnishError
from burnish.safety.filter.content_filter import ContentFilter

TRAPS = [Path(__file__).parent / name for name in ("traps_en.txt", "traps_zh.txt")]


def alarms(texts: list[str]) -> list[str]:
    content_filter = ContentFilter()
    return [text for text in texts if content_filter.check(text).verdict != "allow"]


def cached(name: str) -> list[str]:
    """The texts of files of the catalogue that are on this machine."""
    try:
        files = fetch(name, offline=True).values()
    except BurnishError:
        pytest.skip(f"needs `burnish fetch {name}`")
    return [path.read_bytes().decode("utf-8", "replace") for path in files]


def test_at_most_two_of_200_traps() -> None:
    texts = [line for path in TRAPS for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(set(texts)) == 200
    assert len(alarms(texts)) <= 2


def test_at_most_one_of_350_news_articles() -> None:
    articles = [line for text in cached("lee-news") for line in text.splitlines()]
    assert len(articles) == 350
    assert len(alarms(articles)) <= 1


def test_none_of_the_sentences_for_learners() -> None:
    (rows,) = map(json.loads, cached("hsk-sentences"))
    assert len(rows) == 4354
    for key in ("chinese", "traditional", "pinyin"):
        assert alarms([row[key] for row in rows]) == []
    assert alarms([row["translation"]["en"] for row in rows]) == []
