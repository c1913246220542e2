"""Rewards for the expected content of a text and for its readability; neither needs an extra package."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import pairwise

from burnish.errors import InputError
from burnish.rewards.references import get_reference
from burnish.rewards.registry import check_choice, reward
from burnish.text import SENTENCE_END, WITHOUT_SPACES, Pattern, is_unspaced, sentences, words
from burnish.types import Completion

SOURCES = ("reference", "prompt")
FORMS = ("reward", "grade")

_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[\d{WITHOUT_SPACES}]]+"
_TOKEN = Pattern(rf"(?V1)(?=[{WITHOUT_SPACES}])\X\p{{M}}*|\d+(?:[.,]\d+)*|{_LETTERS}(?:['’-]{_LETTERS})*|[^\s_]")
_LETTERS_OR_DIGITS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{WITHOUT_SPACES}]]+"
_HYPHENATED = Pattern(rf"(?V1){_LETTERS_OR_DIGITS}(?:['’-]{_LETTERS_OR_DIGITS})*")
_OPENING = "\"'“‘([{「『《"
# Words with a grammatical function: a text without them states the same facts.
_FUNCTION_WORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before being below between
    both but by can cannot could did do does doing down during each few for from further had has have having he her here
    hers herself him himself his how however i if in into is it its itself just may me might more most must my myself no
    nor not now of off on once only or other our ours ourselves out over own said same shall she should so some such
    than that the their theirs them themselves then there these they this those through to too under until up upon us
    very was we were what when where which while who whom whose why will with would yet you your yours yourself
    yourselves""".split()  # noqa: SIM905 - easier to read as a list of words
)
_FUNCTION_CHARACTERS = frozenset(
    "的了着过地得是在有和与及或而但且也都就还又再很更最不没这那哪此其之以于为被把将对从向到由给让使能会可要他她它我你您们吗呢吧啊呀么个"
)


def _check_informativeness(*, source: str) -> None:
    check_choice("informativeness", "source", source, SOURCES)


@reward(check_options=_check_informativeness)
def informativeness(completion: Completion, *, source: str = "reference") -> float:
    """How much of the reference's (or the prompt's) content is in a text, in [0, 1]: content words, names and numbers.

    The mean of two shares: of the source's different content words, and of its different names and numbers. If the
    source has only one of the two, its share alone. Content words are all words but function words; in scripts without
    spaces, every two neighbouring characters, neither of them a function character, since there is no word list. Names
    are capitalised words inside a sentence, words in capitals and, in Chinese, Latin words and titles in 《》. Numbers
    are compared as written, except for thousands separators and full-width digits, so 三千 is not 3000. Otherwise, case
    does not count.

    Fails by: rewarding a bare list of words in full (add "repetition" and "perplexity"), and a copy of the prompt;
    missing synonyms, inflections and false relations between the right words; and taking a word for a name after a
    missing full stop.

    Args:
        source: "reference" or "prompt", the text whose content is expected.

    Source: our combination of ROUGE-1 recall (Lin 2004) on content words with the entity coverage of summaries (as in
    Nan et al. 2021, arXiv 2102.09130).
    """
    _check_informativeness(source=source)
    expected = _content(
        get_reference(completion, "informativeness") if source == "reference" else completion.prompt.text
    )
    if not any(expected):
        raise InputError(
            f"reward 'informativeness': the {source} of prompt '{completion.prompt.id}' has no content word, name or "
            "number"
        )
    # Together: at the beginning of a sentence, a name looks like another word.
    present = set.union(*_content(completion.text))
    shares = [len(part & present) / len(part) for part in expected if part]
    return sum(shares) / len(shares)


def _content(text: str) -> tuple[set[str], set[str]]:
    """Return the different content words of a text, and its names and numbers, in lower case."""
    text = unicodedata.normalize("NFKC", text)
    words: set[str] = set()
    names: set[str] = {title.lower() for title in re.findall(r"《([^《》]{1,60})》", text)}
    tokens = _TOKEN.findall(text)
    at_start, has_unspaced, all_capitals = True, any(map(is_unspaced, tokens)), text.isupper()
    for token in tokens:
        if is_unspaced(token):
            at_start = False
        elif token[0].isdigit():
            names.add(token.replace(",", ""))
            at_start = False
        elif token[0].isalpha():
            word = token.lower().removesuffix("'s").removesuffix("’s")
            capitals = len(token) > 1 and token.isupper() and not all_capitals
            if (capitals or word not in _FUNCTION_WORDS) and len(word) > 1:
                is_name = capitals or (token[0].isupper() and not at_start) or has_unspaced
                (names if is_name else words).add(word)
            at_start = False
        elif SENTENCE_END.match(token):
            at_start = True
        elif token not in _OPENING:
            at_start = False
    for first, second in pairwise(tokens):
        if is_unspaced(first) and is_unspaced(second) and not {first, second} & _FUNCTION_CHARACTERS:
            words.add(first + second)
    return words - names, names


def _check_readability(*, grade: float, spread: float, characters: int, form: str) -> None:
    check_choice("readability", "form", form, FORMS)
    if not (math.isfinite(grade) and math.isfinite(spread) and spread > 0 and characters > 0):
        raise InputError("readability: grade must be a number, spread and characters above 0")


@reward(check_options=_check_readability)
def readability(
    text: str, *, grade: float = 9.0, spread: float = 8.0, characters: int = 30, form: str = "reward"
) -> float:
    """How easy a text is to read, in [0, 1]: 1 up to a school grade, falling linearly to 0 above it.

    The grade, in years at an American school, is the Automated Readability Index, ``4.71 letters/words + 0.5
    words/sentences - 21.43``, where digits count as letters. There is no such index for text without spaces, such as
    Chinese or Japanese: the reward is 1 up to ``characters`` per sentence and 0 from three times as many, a measure of
    our own that only sees long sentences. A text without words scores 0.

    Fails by: rewarding short words and full stops anywhere ("It is. So it is."), and ignoring meaning. On one or two
    lines the grade is noise.

    Args:
        grade: highest grade that scores 1.
        spread: grades from there to a score of 0.
        characters: per sentence, for text without spaces.
        form: "reward", or "grade" for the index itself (or the characters per sentence), an unbounded number, for
            measurement rather than training.

    Source: Senter and Smith 1967, Automated Readability Index, AMRL-TR-66-220.
    """
    _check_readability(grade=grade, spread=spread, characters=characters, form=form)
    # A full stop inside a number ends no sentence; ； does.
    marked = re.sub(r"(?<=\d)\.(?=\d)", ",", text).replace("；", "。")
    parts = [part for part in sentences(marked) if any(map(str.isalnum, part))]
    unspaced = sum(map(is_unspaced, words(text)))
    spaced = [word for part in parts for word in _HYPHENATED.findall(part)]
    if not parts or (not spaced and not unspaced):
        return 0.0
    if unspaced > len(spaced):
        length = (unspaced + len(spaced)) / len(parts)
        return length if form == "grade" else min(1.0, max(0.0, (3 * characters - length) / (2 * characters)))
    letters = sum(map(str.isalnum, "".join(spaced)))
    index = 4.71 * letters / len(spaced) + 0.5 * len(spaced) / len(parts) - 21.43
    return index if form == "grade" else min(1.0, max(0.0, 1.0 - (index - grade) / spread))
