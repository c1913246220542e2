"""Words, sentences and n-grams of a text in any script.

A word is a run of letters with their combining marks, digits and underscores, in lower case. One apostrophe or
invisible joiner may be inside it ("don't"). Scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have
a word for every user-perceived character. Every punctuation mark and every emoji is a word of its own, so that "!!!!!!"
counts as repetition. Words are in the composed form NFC: the two spellings of "é" are equal.

The word boundaries of UAX #29 differ in one rule: here a full stop or comma always separates, as in "3.14" and "e.g".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any

from burnish.errors import InputError


class Pattern:
    """A pattern of the package ``regex``, which is imported when the pattern is first used: importing it is slow."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    @cached_property
    def _compiled(self) -> Any:
        import regex

        return regex.compile(self._pattern)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)


HAN_AND_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
"""Chinese and Japanese characters, for a character class of the package ``regex``."""
WITHOUT_SPACES = HAN_AND_KANA + r"\p{Line_Break=Complex_Context}"
"""Scripts without spaces between words: Han, kana, and those of UAX #14's class SA (Thai, Lao, Khmer, Burmese)."""

_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{WITHOUT_SPACES}]]+"
_JOINERS = "['’]|[\u00ad\u200c\u200d\u2060]+"  # soft hyphen, zero-width non-joiner (Persian) and joiner, word joiner
_WORD = Pattern(rf"(?V1){_LETTERS}(?:(?:{_JOINERS}){_LETTERS})*|(?=[{WITHOUT_SPACES}])\X\p{{M}}*|(?!\s)\X")
_UNSPACED = Pattern(f"[{WITHOUT_SPACES}]")
_HAN_OR_KANA = Pattern(f"[{HAN_AND_KANA}]")

SENTENCE_END = Pattern(r"[\p{Sentence_Terminal}…\n]+")
"""The end of a sentence: full stop, question or exclamation mark of any script, ellipsis, or the end of a line."""


def words(text: str) -> list[str]:
    """Return the words of a text in order, punctuation and emoji included."""
    tokens: list[str] = _WORD.findall(unicodedata.normalize("NFC", text.lower()))
    return tokens


def lexical_words(text: str) -> list[str]:
    """Return the words that begin with a letter or digit: no punctuation, no emoji."""
    return [word for word in words(text) if word[0].isalnum()]


def is_unspaced(word: str) -> bool:
    """Return whether a word is a character of a script without spaces."""
    return _UNSPACED.match(word) is not None


def mostly_unspaced(text: str) -> bool:
    """Return whether at least half of a text's words are characters of scripts without spaces."""
    return _mostly(_UNSPACED, text)


def mostly_han_or_kana(text: str) -> bool:
    """Return whether at least half of a text's words are Chinese or Japanese characters."""
    return not text.isascii() and _mostly(_HAN_OR_KANA, text)


def _mostly(script: Pattern, text: str) -> bool:
    tokens = words(text)
    matches = sum(script.match(word) is not None for word in tokens)
    return matches > 0 and 2 * matches >= sum(word[0].isalpha() for word in tokens)


def sentences(text: str) -> list[str]:
    """Return the parts between sentence ends, without the marks that end them; parts of white space are left out."""
    return [part for part in SENTENCE_END.split(text) if part.strip()]


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """Return the ``max(0, T - n + 1)`` runs of n neighbouring tokens, in order. Raises InputError if n is below 1."""
    if n < 1:
        raise InputError(f"n = {n}: an n-gram has at least one token")
    return (tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
