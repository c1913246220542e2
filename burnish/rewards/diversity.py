"""How much a text, or a set of texts, repeats itself.

A word here is a run of letters and digits, lower-cased; every Chinese or Japanese character and every punctuation mark
or emoji is a word of its own, so that Chinese is not one endless word and "!!!!!!" counts as repetition.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence

from burnish.errors import InputError

WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Han characters, as a range for a regular expression: scripts that put no space between words."""
_WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+(?:['’][^\W{WITHOUT_SPACES}]+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text, as this module counts them."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """The ``max(0, T - n + 1)`` runs of n neighbouring tokens, in order. Raises InputError for n below 1."""
    if n < 1:
        raise InputError(f"n = {n}: an n-gram has at least one token")
    return (tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def distinct_n(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """Different n-grams of all texts divided by all their n-grams, in [0, 1]; no n-gram crosses two texts.

    0.0 where no text has n tokens: a policy that falls silent is not diverse. The value falls as a corpus grows, so
    only sets of like size are comparable.

    Source: Li et al. 2016, arXiv 1510.03055, section 5.1.
    """
    every = [gram for tokens in texts for gram in ngrams(tokens, n)]
    return len(set(every)) / len(every) if every else 0.0


def longest_repeat(tokens: Sequence[Hashable]) -> int:
    """Length of the longest run of tokens that occurs earlier in the same text; the two may overlap.

    So "a b c a b" has 2 and "a a a a" has 3. Exact, in O(T log T) time and memory: runs of 1, 2, 4, ... tokens are
    numbered so that equal runs have equal numbers, and the longest length is then put together from the powers of two.
    (The doubling of Karp, Miller and Rosenberg 1972.)
    """
    numbered: list[list[int]] = []
    level = _number(tokens)
    while _repeats(level):
        numbered.append(level)
        span = 2 ** (len(numbered) - 1)
        level = _number(zip(level[:-span], level[span:], strict=True)) if len(level) > span else []
    length, current = 0, [0] * len(tokens)
    for power in reversed(range(len(numbered))):
        # current[i] numbers the run of `length` tokens at i; try to make it longer by 2**power.
        further = numbered[power][length:]
        longer = _number(zip(current[: len(further)], further, strict=True))
        if _repeats(longer):
            length, current = length + 2**power, longer
    return length


def repeat_share(tokens: Sequence[Hashable]) -> float:
    """``longest_repeat`` divided by the longest there could be, T - 1: in [0, 1]; 0 for fewer than two tokens."""
    return longest_repeat(tokens) / (len(tokens) - 1) if len(tokens) > 1 else 0.0


def repetition(text: str, *, n: int = 2) -> float:
    """How little a text repeats itself, in [0, 1]: 1 where no n-gram of words occurs twice, 0 where one word is all.

    The product ``(1 - r) * (1 - l)``. With m n-grams of which d differ, ``r = (m - d) / (m - 1)`` is the share of
    n-grams that came before. ``l`` is the longest repeated run divided by the longest there could be (T - 1 words),
    counted only from a length of n. The first notices loops of few words, the second a long passage copied once.

    Fails by: favouring short texts, which have little room to repeat (one of at most n words scores 1, an empty text
    too), and by not seeing texts that repeat one another: watch ``diversity/distinct_2`` for that.

    Args:
        text: what was sampled.
        n: words in the n-grams, at least 1.

    Raises:
        InputError: n below 1.
    """
    tokens = words(text)
    grams = list(ngrams(tokens, n))
    if len(grams) < 2:
        return 1.0
    repeated = (len(grams) - len(set(grams))) / (len(grams) - 1)
    longest = longest_repeat(tokens)
    share = longest / (len(tokens) - 1) if longest >= n else 0.0
    return (1.0 - repeated) * (1.0 - share)


def _number(keys: Iterable[Hashable]) -> list[int]:
    """Equal keys get equal numbers."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _repeats(numbers: Sequence[int]) -> bool:
    return len(set(numbers)) < len(numbers)
