"""Rewards that ask which words of a true answer a text has, in order or not."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Hashable, Sequence
from itertools import pairwise

from burnish.errors import InputError
from burnish.rewards.library.overlap import reference_of
from burnish.rewards.registry import reward
from burnish.text import is_unspaced, lexical_words, ngrams
from burnish.types import Completion


def spoken(text: str) -> list[str]:
    """The words of a text without punctuation; each Chinese or Japanese character is one, and １２ is 12."""
    return lexical_words(unicodedata.normalize("NFKC", text))


@reward(needs_reference=True)
def rouge_l(completion: Completion, *, beta: float = 1.0) -> float:
    """ROUGE-L against the prompt's reference, in [0, 1]: the longest run of words that both have in one order, gaps allowed.

    With L the length of that longest common subsequence, P = L / words of the text and R = L / words of the reference,
    the F-measure ``(1 + beta^2) P R / (R + beta^2 P)``; exact, without stemming, and 0 where either has no word. Words
    are lower-cased and punctuation is left out; every Chinese or Japanese character is a word. Fails by: paying for
    frequent words ("the ... of ... the") that turn up in any text in some order, and by not seeing a synonym.

    Args:
        completion: what was sampled; its prompt must have a reference.
        beta: how many times as much recall counts as precision; above 0.

    Raises:
        InputError: the prompt has no reference, or ``beta`` is not above 0.

    Source: Lin 2004, ROUGE: a package for automatic evaluation of summaries, section 3.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InputError(f"rouge_l: beta = {beta}: must be above 0")
    said, true = spoken(completion.text), spoken(reference_of(completion, "rouge_l"))
    common = common_subsequence(said, true)
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(true)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest sequence that is within both, in order and with gaps.

    Bit i of ``rows`` is 0 where the best length grows at the i-th token of ``first``; one addition of whole numbers does
    a row of the usual table. (Hyyro 2004, Bit-parallel LCS-length computation revisited.)
    """
    places: dict[Hashable, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    every = (1 << len(first)) - 1
    rows = every
    for token in second:
        met = rows & places.get(token, 0)
        rows = (rows + met | rows - met) & every
    return len(first) - rows.bit_count()


@reward
def keywords(completion: Completion, *, min_letters: int = 4) -> float:
    """The share of the wanted keywords that the text holds, in [0, 1].

    Wanted are the prompt's ``metadata["keywords"]``, a list of texts, where it has that; else the different words of its
    reference that have at least ``min_letters`` letters, and for Chinese and Japanese every two neighbouring characters.
    A keyword counts where its words stand in the text side by side, case aside; "art" is not in "party". Fails by:
    paying in full for a mere list of the keywords: join it with "perplexity", "repetition" or "length_band".

    Args:
        completion: what was sampled.
        min_letters: letters of a content word; at least 1.

    Raises:
        InputError: the prompt has neither keywords nor a reference with a content word.

    Source: the coverage of CommonGen (Lin et al. 2020, arXiv 1911.03705), without lemmas.
    """
    if min_letters < 1:
        raise InputError(f"keywords: min_letters = {min_letters}: must be at least 1")
    wanted = _wanted(completion, min_letters)
    said = spoken(completion.text)
    held = {length: set(ngrams(said, length)) for length in set(map(len, wanted))}
    return sum(keyword in held[len(keyword)] for keyword in wanted) / len(wanted)


def _wanted(completion: Completion, min_letters: int) -> set[tuple[Hashable, ...]]:
    prompt = completion.prompt
    listed = prompt.metadata.get("keywords")
    if listed is not None:
        # A text is a sequence of texts too: its letters would be the keywords.
        if not isinstance(listed, list | tuple) or not all(isinstance(keyword, str) for keyword in listed):
            raise InputError(f"reward 'keywords': the keywords of prompt '{prompt.id}' must be a list of texts")
        wanted = {tuple(spoken(keyword)) for keyword in listed}
        if not wanted or () in wanted:
            raise InputError(
                f"reward 'keywords': prompt '{prompt.id}' has no keywords, or one without a letter or digit"
            )
        return {tuple(keyword) for keyword in wanted}
    true = spoken(reference_of(completion, "keywords"))
    content: set[tuple[Hashable, ...]] = {
        (word,) for word in true if len(word) >= min_letters and not is_unspaced(word)
    }
    content |= {pair for pair in pairwise(true) if all(map(is_unspaced, pair))}
    if not content:
        raise InputError(
            f"reward 'keywords': the reference of prompt '{prompt.id}' has no word of {min_letters} letters: "
            "lower min_letters, or give the prompt's metadata a list 'keywords'"
        )
    return content
