"""Rewards and measures of repetition within a text and of diversity among texts, by the words of ``burnish.text``."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from burnish.rewards.registry import reward
from burnish.text import ngrams, words
from burnish.types import Completion


def distinct_n(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """Return the number of different n-grams of all texts divided by the number of all their n-grams, in [0, 1].

    No n-gram crosses two texts. The value is 0.0 if no text has n tokens: a silent policy is not diverse. It falls as a
    corpus grows, so compare only sets of similar size.

    Source: Li et al. 2016, arXiv 1510.03055, section 5.1.
    """
    grams = [gram for tokens in texts for gram in ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def longest_repeat(tokens: Sequence[Hashable]) -> int:
    """Return the length of the longest run of tokens that also occurs earlier in the text; the two may overlap.

    For "a b c a b" it is 2, for "a a a a" 3. Exact, in O(T log T) time and memory: runs of 1, 2, 4, ... tokens are
    numbered so that equal runs have equal numbers, and the longest length is then composed from the powers of two.
    (Doubling, Karp, Miller and Rosenberg 1972.)
    """
    numbered: list[list[int]] = []
    level = _number(tokens)
    while _repeats(level):
        numbered.append(level)
        span = 2 ** (len(numbered) - 1)
        level = _number(zip(level[:-span], level[span:], strict=True)) if len(level) > span else []
    length, current = 0, [0] * len(tokens)
    for power in reversed(range(len(numbered))):
        # current[i] is the number of the run of `length` tokens at i; try to extend it by 2**power.
        further = numbered[power][length:]
        longer = _number(zip(current[: len(further)], further, strict=True))
        if _repeats(longer):
            length, current = length + 2**power, longer
    return length


def repeat_share(tokens: Sequence[Hashable]) -> float:
    """Return ``longest_repeat`` divided by its maximum T - 1, in [0, 1]; 0 for fewer than two tokens."""
    return longest_repeat(tokens) / (len(tokens) - 1) if len(tokens) > 1 else 0.0


@reward
def repetition(text: str, *, n: int = 2) -> float:
    """How little a text repeats itself, in [0, 1]: 1 if no word n-gram occurs twice, 0 if one word is all.

    The product ``(1 - r) * (1 - l)``. With m n-grams of which d are different, ``r = (m - d) / (m - 1)`` is the share
    of n-grams that occurred before. ``l`` is the longest repeated run divided by its maximum (T - 1 words), or 0 if the
    run is shorter than n. The first factor detects loops of few words, the second a long passage copied once.

    Fails by: preferring short texts, which have little room to repeat (an empty text and one of at most n words score
    1), and ignoring that texts may repeat one another: watch ``diversity/distinct_2`` for that.

    Args:
        n: words per n-gram, at least 1.

    Source: the share of repeated n-grams (seq-rep-n) of Welleck et al. 2019, arXiv 1908.04319; the second factor
    is our own.
    """
    tokens = words(text)
    grams = list(ngrams(tokens, n))
    if len(grams) < 2:
        return 1.0
    repeated = (len(grams) - len(set(grams))) / (len(grams) - 1)
    longest = longest_repeat(tokens)
    share = longest / (len(tokens) - 1) if longest >= n else 0.0
    return (1.0 - repeated) * (1.0 - share)


@reward
def compression(text: str) -> float:
    """How little a text can be compressed, in [0, 1]: 1 if not at all, near 0 for a phrase repeated over and over.

    The size of the text's DEFLATE form (of UTF-8, level 9, without header, less the two bytes of an empty text) divided
    by the size of the text, at most 1. It detects repetition at a distance and within words, which word n-grams do not.

    Fails by: preferring short texts, which have little to repeat (an empty text scores 1), so compare only texts of
    similar length; and paying most for noise. Chinese and English have different levels. Another build of zlib may
    differ in the last bytes.

    Source: RFC 1951.
    """
    raw = text.encode("utf-8", "backslashreplace")
    if not raw:
        return 1.0
    packer = zlib.compressobj(level=9, wbits=-15)
    packed = len(packer.compress(raw)) + len(packer.flush())
    return min(1.0, (packed - 2) / len(raw))


@reward(needs_companions=True, needs_whole="it compares whole completions with one another")
def group_diversity(completions: Sequence[Completion], *, n: int = 2) -> list[float]:
    """How much a completion differs from the others of its prompt, in [0, 1]: 1 if it shares no n-gram with them.

    The mean, over the different word n-grams of the completion, of the share of the G - 1 others without that n-gram. 0
    if all are equal, and for a text of fewer than n words: silence is not diverse. A single completion scores 1, so a
    recipe with one sample per prompt, in training or held out, is refused.

    Fails by: paying for any difference, nonsense most of all: give it a small weight next to a reward for quality.

    Args:
        n: words per n-gram, at least 1.

    Source: the idea of Self-BLEU (Zhu et al. 2018, Texygen, arXiv 1802.01886), with the share of common n-grams.
    """
    grams = [set(ngrams(words(completion.text), n)) for completion in completions]
    groups: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        groups.setdefault(completion.prompt.id, []).append(index)
    values = [0.0] * len(completions)
    for indices in groups.values():
        counts = Counter(gram for index in indices for gram in grams[index])
        others = len(indices) - 1
        for index in indices:
            shared = sum(counts[gram] - 1 for gram in grams[index])
            if grams[index]:
                values[index] = 1.0 - shared / (others * len(grams[index])) if others else 1.0
    return values


def _number(keys: Iterable[Hashable]) -> list[int]:
    """Return a number for each key, equal for equal keys."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _repeats(numbers: Sequence[int]) -> bool:
    return len(set(numbers)) < len(numbers)
