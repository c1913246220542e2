"""Rewards for the words of the reference in a text, in order (ROUGE-L) or not (keywords)."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Hashable, Sequence
from itertools import pairwise

from burnish.errors import InputError
from burnish.rewards.library.overlap import get_reference
from burnish.rewards.registry import reward
from burnish.text import is_unspaced, lexical_words, ngrams
from burnish.types import Completion


def _normalized_words(text: str) -> list[str]:
    """Return the words of a text without punctuation; full-width forms such as １２ are equal to ordinary ones."""
    return lexical_words(unicodedata.normalize("NFKC", text))


@reward(needs_reference=True)
def rouge_l(completion: Completion, *, beta: float = 1.0) -> float:
    """ROUGE-L against the prompt's reference, in [0, 1], from the longest common subsequence of words.

    With L its length, P = L / words of the text and R = L / words of the reference, the reward is the F-measure ``(1 +
    beta^2) P R / (R + beta^2 P)``: exact, without stemming, and 0 if either has no words. Case and punctuation do not
    count. In scripts without spaces, such as Chinese, every character is a word.

    Fails by: rewarding frequent words ("the ... of ... the"), which any text has in some order, and no synonyms.

    Args:
        completion: the sampled completion; its prompt must have a reference.
        beta: weight of recall relative to precision; above 0.

    Raises:
        InputError: the prompt has no reference, or ``beta`` is not above 0.

    Source: Lin 2004, ROUGE: a package for automatic evaluation of summaries, section 3.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InputError(f"rouge_l: beta = {beta}: must be above 0")
    text, reference = _normalized_words(completion.text), _normalized_words(get_reference(completion, "rouge_l"))
    common = common_subsequence(text, reference)
    if common == 0:
        return 0.0
    precision, recall = common / len(text), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence: tokens of both in the same order, gaps allowed.

    Bit i of ``row`` is 0 if the best length grows at the i-th token of ``first``. One addition of integers computes a
    row of the usual table. (Hyyro 2004, Bit-parallel LCS-length computation revisited.)
    """
    positions: dict[Hashable, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for token in second:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & all_ones
    return len(first) - row.bit_count()


@reward
def keywords(completion: Completion, *, min_letters: int = 4) -> float:
    """The share of the prompt's keywords that occur in the text, in [0, 1].

    The keywords are the prompt's ``metadata["keywords"]``, a list of texts. Without that list, they are the different
    words of the reference with at least ``min_letters`` letters, and, in scripts without spaces, every two neighbouring
    characters. A keyword occurs if its words are next to each other in the text, in any case; "art" is not in "party".

    Fails by: rewarding a mere list of the keywords in full: add "perplexity", "repetition" or "length_band".

    Args:
        completion: the sampled completion.
        min_letters: fewest letters of a content word; at least 1.

    Raises:
        InputError: the prompt has neither keywords nor a reference with a content word.

    Source: coverage in CommonGen (Lin et al. 2020, arXiv 1911.03705), without lemmas.
    """
    if min_letters < 1:
        raise InputError(f"keywords: min_letters = {min_letters}: must be at least 1")
    wanted = _keywords(completion, min_letters)
    text = _normalized_words(completion.text)
    present = {length: set(ngrams(text, length)) for length in set(map(len, wanted))}
    return sum(keyword in present[len(keyword)] for keyword in wanted) / len(wanted)


def _keywords(completion: Completion, min_letters: int) -> set[tuple[Hashable, ...]]:
    prompt = completion.prompt
    listed = prompt.metadata.get("keywords")
    if listed is not None:
        # A string is a sequence of strings too: its letters would be the keywords.
        if not isinstance(listed, list | tuple) or not all(isinstance(keyword, str) for keyword in listed):
            raise InputError(f"reward 'keywords': the keywords of prompt '{prompt.id}' must be a list of texts")
        wanted = {tuple(_normalized_words(keyword)) for keyword in listed}
        if not wanted or () in wanted:
            raise InputError(
                f"reward 'keywords': prompt '{prompt.id}' has no keywords, or a keyword without letters and digits"
            )
        return {tuple(keyword) for keyword in wanted}
    reference = _normalized_words(get_reference(completion, "keywords"))
    content: set[tuple[Hashable, ...]] = {
        (word,) for word in reference if len(word) >= min_letters and not is_unspaced(word)
    }
    content |= {pair for pair in pairwise(reference) if all(map(is_unspaced, pair))}
    if not content:
        raise InputError(
            f"reward 'keywords': the reference of prompt '{prompt.id}' has no word of {min_letters} letters: "
            "lower min_letters, or add a list 'keywords' to the prompt's metadata"
        )
    return content
