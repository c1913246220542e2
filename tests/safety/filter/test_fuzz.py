"""Random texts: valid spans, streams that equal whole texts, and allowed phrases that change nothing else."""

from __future__ import annotations

import random

import pytest

from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.policy import CATEGORIES
from burnish.safety.filter.verdict import ACTIONS
from tests.safety.filter.test_streaming import streamed

PIECES = (
    "bollocks", "B0LL0CKS", "b o l l o c k s", "bol\u200blocks", "b*llocks", "bolllocks", "王八蛋", "王*八*蛋", "王 八 蛋",
    "媽的", "ada@example.org", "13800138000", "4111 1111 1111 1111", "219-09-9998", "the dog's bollocks", "hello", "你好",
    "漢語", "🙂", "(", "@", "..", "\n", "。", ", ", "\u0301", "\u200b", "\ud800", "ß", "ﬁ", "İ",
    "-", "*", "'", "1", "a", " ",
)  # fmt: skip
ALLOWED = "the dog's bollocks"


def texts(count: int, longest: int) -> list[str]:
    source = random.Random(0)
    return ["".join(source.choices(PIECES, k=source.randint(0, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def flagging() -> ContentFilter:
    return ContentFilter({"allow": [ALLOWED], "categories": {name: {"action": "flag"} for name in CATEGORIES}})


def test_verdicts_and_spans_are_sound(flagging: ContentFilter) -> None:
    for text in texts(400, 30):
        verdict = flagging.check(text)
        spans = [(one.start, one.end) for one in verdict.findings]
        assert spans == sorted(spans, key=lambda span: (span[0], -span[1])), repr(text)
        assert all(0 <= start < end <= len(text) for start, end in spans), repr(text)
        assert verdict.verdict == ("flag" if spans else "allow") in ACTIONS
        assert flagging.check(text) == verdict


def test_a_stream_shows_what_the_whole_text_shows(flagging: ContentFilter) -> None:
    for seed, text in enumerate(texts(40, 60)):
        assert streamed(flagging, text, seed) == flagging.redact(text), repr(text)


def test_an_allowed_phrase_changes_nothing_else(flagging: ContentFilter) -> None:
    for text in texts(200, 12):
        with_phrase, without = (flagging.check(f"{text}。{phrase}。").findings for phrase in (ALLOWED, ""))
        assert with_phrase == without, repr(text)
