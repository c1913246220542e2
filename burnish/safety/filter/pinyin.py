"""Pinyin spellings of the Chinese terms of the word layer, derived with pypinyin.

Pinyin without tones has many readings, so a term of the lists has spellings in pinyin alone only if it is long: its
syllables joined ("wangbadan") or apart ("wang ba dan"). Spellings that mix Chinese characters and pinyin ("王ba蛋"), or
an initial letter for a character between two others ("王b蛋"), are safe for shorter terms too. The initials alone of a
long term are ambiguous, and so is every spelling that an ambiguous term or an innocent phrase has too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product

from burnish.safety.filter.lexicon import AMBIGUOUS, CLEAR, Term, terms
from burnish.system.optional_packages import needed

SYLLABLES, LETTERS = 3, 6
"""Least numbers of syllables and of letters of a spelling without Chinese characters."""
MOST = 5
"""Most characters of a term whose mixed spellings count: there are twice as many for each character more."""
_HAN = re.compile("[\u3400-\u9fff]+")
# 打击吧, 小鸡吧, 购东西, 你去寺, 去四吧, 赶七八, 是你娘, 是你老母, 下三栏, 挂袜子, 贵儿子, 看似你, 唧唧歪歪, 你老母的
_INNOCENT = frozenset(
    {
        "da ji ba", "xiao ji ba", "gou dong xi", "ni qu si", "qu si ba", "gan qi ba", "shi ni niang", "shi ni lao mu",
        "xia san lan", "gua wa zi", "gui er zi", "kan si ni", "ji ji wai wai", "ni lao mu de",
    }
)  # fmt: skip
"""Spellings with an innocent reading."""


@lru_cache(maxsize=1)
def pinyin_terms() -> tuple[Term, ...]:
    """Return the spellings of the terms of the lists. Raises InputError if pypinyin is missing."""
    han = [term for term in terms() if _HAN.fullmatch(term.text)]
    ambiguous = {text for term in han if term.score < CLEAR for text, _ in _spellings(term.text)}
    found: dict[str, Term] = {}
    for term in han:
        if term.score >= CLEAR:
            for text, score in _spellings(term.text):
                score = AMBIGUOUS if text in ambiguous else score
                found.setdefault(text, replace(term, text=text, score=score))
    return tuple(found.values())


def syllables(text: str) -> list[str]:
    """Return the syllables of Chinese characters, without tones; ü is v, as it is typed."""
    spoken: list[str] = needed("pypinyin", "safety", "the content filter").lazy_pinyin(text)
    return spoken


def _spellings(term: str) -> Iterator[tuple[str, float]]:
    """Yield the spellings of a term of Chinese characters, each with its score."""
    parts = syllables(term)
    if len(parts) >= SYLLABLES:
        apart, joined = " ".join(parts), "".join(parts)
        if len(joined) >= LETTERS:
            score = AMBIGUOUS if apart in _INNOCENT else CLEAR
            yield from ((apart, score), (joined, score))
        yield "".join(part[0] for part in parts), AMBIGUOUS
        for index in range(1, len(parts) - 1):
            yield term[:index] + parts[index][0] + term[index + 1 :], CLEAR
    if len(parts) <= MOST:
        yield from ((text, CLEAR) for text in _mixed(term, parts))


def _mixed(term: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield a term with some of its characters in pinyin; of two characters the second, as "Lang叫" has a name."""
    for spelled in product((False, True), repeat=len(parts)):
        if any(spelled) and not all(spelled) and (len(parts) > 2 or not spelled[0]):
            yield "".join(part if one else own for own, part, one in zip(term, parts, spelled, strict=True))
