"""How much a text, or a set of texts, repeats itself.

Words and n-grams are those of ``burnish.text``.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from burnish.rewards.registry import reward
from burnish.text import ngrams, words
from burnish.types import Completion


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


@reward
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

    Source: the share of repeated n-grams (seq-rep-n) of Welleck et al. 2019, arXiv 1908.04319; the second part is our own.
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
    """How little a text can be compressed, in [0, 1]: 1 where nothing is gained, near 0 for one phrase over and over.

    The bytes of the text's DEFLATE form (of UTF-8, level 9, without header, less the two bytes of an empty one), divided
    by the text's own bytes, at most 1. Sees repetition at a distance and of parts of words, which n-grams of words do
    not. Fails by: favouring short texts, which have little to repeat (an empty one scores 1), so that only texts of like
    length are comparable; and by paying most for noise. Chinese and English have different levels. Another build of zlib
    may differ in the last bytes.

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
    """How much a completion differs from the others of its prompt, in [0, 1]: 1 where it shares nothing with any.

    The mean, over the different n-grams of words that the completion has, of the share of the G - 1 others that do not
    have that n-gram. 0 where all say the same, and for a text of fewer than n words: silence is not diverse. A text
    alone has nobody to differ from and scores 1: a recipe with one sample a prompt, in training or held out, is refused.
    Fails by: paying for difference of any kind, nonsense most of all: give it a small weight beside a reward for what is
    wanted.

    Args:
        completions: those of one prompt are one group, wherever they stand.
        n: words in the n-grams, at least 1.

    Raises:
        InputError: n below 1.

    Source: the idea of Self-BLEU (Zhu et al. 2018, Texygen, arXiv 1802.01886), with the share of common n-grams.
    """
    grams = [set(ngrams(words(completion.text), n)) for completion in completions]
    groups: dict[str, list[int]] = {}
    for place, completion in enumerate(completions):
        groups.setdefault(completion.prompt.id, []).append(place)
    values = [0.0] * len(completions)
    for places in groups.values():
        holders = Counter(gram for place in places for gram in grams[place])
        others = len(places) - 1
        for place in places:
            shared = sum(holders[gram] - 1 for gram in grams[place])
            if grams[place]:
                values[place] = 1.0 - shared / (others * len(grams[place])) if others else 1.0
    return values


def _number(keys: Iterable[Hashable]) -> list[int]:
    """Equal keys get equal numbers."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _repeats(numbers: Sequence[int]) -> bool:
    return len(set(numbers)) < len(numbers)
