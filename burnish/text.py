"""What a word, a sentence and an n-gram is.

A word is a run of letters and digits, lower-cased; every Chinese or Japanese character and every punctuation mark
or emoji is a word of its own, so that Chinese is not one endless word and "!!!!!!" counts as repetition.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence

from burnish.errors import InputError

WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Han characters, as a range for a regular expression: scripts that put no space between words."""
_UNSPACED = re.compile(f"[{WITHOUT_SPACES}]")
_WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+(?:['’][^\W{WITHOUT_SPACES}]+)*|[^\w\s]")


def mostly_unspaced(text: str) -> bool:
    """Whether Chinese or Japanese characters are at least half of a text's words."""
    unspaced = len(_UNSPACED.findall(text))
    return unspaced > 0 and 2 * unspaced >= sum(word[0].isalpha() for word in words(text))


def words(text: str) -> list[str]:
    """The words of a text, as this module counts them."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """The ``max(0, T - n + 1)`` runs of n neighbouring tokens, in order. Raises InputError for n below 1."""
    if n < 1:
        raise InputError(f"n = {n}: an n-gram has at least one token")
    return (tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
