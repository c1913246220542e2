"""Reward for the keywords of a prompt that a completion contains."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from typing import TYPE_CHECKING

from burnish.errors import InputError
from burnish.rewards.library.overlap import normalized_words
from burnish.rewards.references import get_reference
from burnish.rewards.registry import reward
from burnish.text import is_unspaced, ngrams
from burnish.types import Completion

if TYPE_CHECKING:
    pass


@reward
def keywords(completion: Completion, *, min_letters: int = 4) -> float:
    """The share of the prompt's keywords that occur in the text, in [0, 1].

    The keywords are the prompt's ``metadata["keywords"]``, a list of texts. Without that list, they are the different
    words of the reference with at least ``min_letters`` letters, and, in scripts without spaces, every two neighbouring
    characters. A keyword occurs if its words are next to each other in the text, in any case; "art" is not in "party".

    Fails by: rewarding a mere list of the keywords in full: add "perplexity", "repetition" or "length_band".

    Args:
        min_letters: fewest letters of a content word; at least 1.

    Source: coverage in CommonGen (Lin et al. 2020, arXiv 1911.03705), without lemmas.
    """
    if min_letters < 1:
        raise InputError(f"keywords: min_letters = {min_letters}: must be at least 1")
    wanted = _keywords(completion, min_letters)
    text = normalized_words(completion.text)
    present = {length: set(ngrams(text, length)) for length in set(map(len, wanted))}
    return sum(keyword in present[len(keyword)] for keyword in wanted) / len(wanted)


def _keywords(completion: Completion, min_letters: int) -> set[tuple[Hashable, ...]]:
    prompt = completion.prompt
    listed = prompt.metadata.get("keywords")
    if listed is not None:
        # A string is a sequence of strings too: its letters would be the keywords.
        if not isinstance(listed, list | tuple) or not all(isinstance(keyword, str) for keyword in listed):
            raise InputError(f"reward 'keywords': the keywords of prompt '{prompt.id}' must be a list of texts")
        wanted = {tuple(normalized_words(keyword)) for keyword in listed}
        if not wanted or () in wanted:
            raise InputError(
                f"reward 'keywords': prompt '{prompt.id}' has no keywords, or a keyword without letters and digits"
            )
        return {tuple(keyword) for keyword in wanted}
    reference = normalized_words(get_reference(completion, "keywords"))
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
