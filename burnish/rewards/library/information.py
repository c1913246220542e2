"""Rewards that ask how much of what should be said is said, and how hard it is to read. Both need no package."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import pairwise

import regex

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.library.overlap import reference_of
from burnish.rewards.registry import reward
from burnish.text import SENTENCE_END, WITHOUT_SPACES, is_unspaced, sentences, words
from burnish.types import Completion

SOURCES = ("reference", "prompt")
FORMS = ("reward", "grade")

_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[\d{WITHOUT_SPACES}]]+"
_TOKEN = regex.compile(
    rf"(?=[{WITHOUT_SPACES}])\X\p{{M}}*|\d+(?:[.,]\d+)*|{_LETTERS}(?:['’-]{_LETTERS})*|[^\s_]", regex.VERSION1
)
_LETTERS_OR_DIGITS = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{WITHOUT_SPACES}]]+"
_HYPHENATED = regex.compile(rf"{_LETTERS_OR_DIGITS}(?:['’-]{_LETTERS_OR_DIGITS})*", regex.VERSION1)
_OPENING = "\"'“‘([{「『《"
# Words that carry grammar and little else: a reader who has lost them loses nothing that a fact is made of.
_FUNCTION_WORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before being below between both
    but by can cannot could did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how however i if in into is it its itself just may me might more most must my myself no nor not
    now of off on once only or other our ours ourselves out over own said same shall she should so some such than that the
    their theirs them themselves then there these they this those through to too under until up upon us very was we were
    what when where which while who whom whose why will with would yet you your yours yourself yourselves""".split()  # noqa: SIM905 - a list of words, to be read as one
)
_FUNCTION_CHARACTERS = frozenset(
    "的了着过地得是在有和与及或而但且也都就还又再很更最不没这那哪此其之以于为被把将对从向到由给让使能会可要他她它我你您们吗呢吧啊呀么个"
)


def _check_informativeness(*, source: str) -> None:
    if source not in SOURCES:
        raise InputError(
            f"informativeness: unknown source = '{source}'{nearest(source, SOURCES)}; known: {', '.join(SOURCES)}"
        )


@reward(check_options=_check_informativeness)
def informativeness(completion: Completion, *, source: str = "reference") -> float:
    """How much of the true answer (or of the prompt) a text takes up: content words, names and numbers; in [0, 1].

    The mean of two shares: of the source's different content words, and of its different names and numbers, that the text
    has; of one alone where the source has none of the other. Content words are words that are no function words; in
    Chinese and Japanese, every two neighbouring characters of which neither is a function character, since no word
    list is asked. Names are capitalised words within a sentence, words in capitals, Latin words and what stands in 《》
    amid Chinese; numbers are compared as written but for thousands' commas and full-width digits, so 三千 is not 3000.
    Case does not count otherwise. Fails by: paying in full for a bare list of words ("repetition" and "perplexity"
    beside it help) and for a copy of the prompt; not seeing a synonym, an inflection or a false relation between the
    right words; taking a word for a name at a missing full stop.

    Args:
        completion: what was sampled.
        source: "reference", the prompt's true answer, or "prompt", its text.

    Raises:
        InputError: there is no reference, the source has nothing to take up, or an unknown ``source``.

    Source: the recall of ROUGE-1 (Lin 2004) on content words, and the entity coverage of summaries (as in Nan et al. 2021,
    arXiv 2102.09130), put together here.
    """
    _check_informativeness(source=source)
    wanted_from = reference_of(completion, "informativeness") if source == "reference" else completion.prompt.text
    words, names = _content(wanted_from)
    if not words and not names:
        raise InputError(
            f"reward 'informativeness': the {source} of prompt '{completion.prompt.id}' has no content word, name or number"
        )
    said_words, said_names = _content(completion.text)
    # A name may begin a sentence in the text, where it cannot be told from another word.
    said_names = said_names | said_words
    shares = [
        len(wanted & said) / len(wanted)
        for wanted, said in ((words, said_words | said_names), (names, said_names))
        if wanted
    ]
    return sum(shares) / len(shares)


def _content(text: str) -> tuple[set[str], set[str]]:
    """The different content words of a text, and its names and numbers; all in lower case."""
    text = unicodedata.normalize("NFKC", text)
    words: set[str] = set()
    names: set[str] = {title.lower() for title in re.findall(r"《([^《》]{1,60})》", text)}
    tokens = _TOKEN.findall(text)
    begins, chinese, shouted = True, any(map(is_unspaced, tokens)), text.isupper()
    for token in tokens:
        if is_unspaced(token):
            begins = False
        elif token[0].isdigit():
            names.add(token.replace(",", ""))
            begins = False
        elif token[0].isalpha():
            word = token.lower().removesuffix("'s").removesuffix("’s")
            capitals = len(token) > 1 and token.isupper() and not shouted
            if (capitals or word not in _FUNCTION_WORDS) and len(word) > 1:
                named = capitals or (token[0].isupper() and not begins) or chinese
                (names if named else words).add(word)
            begins = False
        elif SENTENCE_END.match(token):
            begins = True
        elif token not in _OPENING:
            begins = False
    for first, second in pairwise(tokens):
        if is_unspaced(first) and is_unspaced(second) and not {first, second} & _FUNCTION_CHARACTERS:
            words.add(first + second)
    return words - names, names


# Readability --------------------------------------------------------------------------------------------------------


def _check_readability(*, grade: float, spread: float, characters: int, form: str) -> None:
    if form not in FORMS:
        raise InputError(f"readability: unknown form = '{form}'{nearest(form, FORMS)}; known: {', '.join(FORMS)}")
    if not (math.isfinite(grade) and math.isfinite(spread) and spread > 0 and characters > 0):
        raise InputError("readability: grade must be a number, spread and characters above 0")


@reward(check_options=_check_readability)
def readability(
    text: str, *, grade: float = 9.0, spread: float = 8.0, characters: int = 30, form: str = "reward"
) -> float:
    """How easy a text is to read, in [0, 1]: 1 up to a school grade, falling in a straight line to 0 above it.

    For text in words, the grade is the Automated Readability Index, ``4.71 letters/words + 0.5 words/sentences - 21.43``,
    where letters are letters and digits: the years at an American school that it takes. For text that is mostly
    Chinese or Japanese there is no such index; it is 1 up to ``characters`` a sentence and 0 from three times as many,
    a measure of our own that sees long sentences and nothing else. A text without a word scores 0. Fails by: paying for
    short words and full stops wherever they stand ("It is. So it is."), and knowing nothing of meaning; on a line
    or two the grade is noise.

    Args:
        text: what was sampled.
        grade: up to here the text is easy enough.
        spread: grades above that at which it scores 0.
        characters: of a Chinese or Japanese sentence.
        form: "grade" gives the index itself (for Chinese the characters a sentence), a number of no fixed range, to be
            measured rather than trained on.

    Raises:
        InputError: an option is out of range.

    Source: Senter and Smith 1967, Automated Readability Index, AMRL-TR-66-220.
    """
    _check_readability(grade=grade, spread=spread, characters=characters, form=form)
    parts = [part for part in sentences(_one_end(text)) if any(map(str.isalnum, part))]
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


def _one_end(text: str) -> str:
    """Return the text without full stops inside numbers, which end no sentence, and with a full stop for each ；."""
    return re.sub(r"(?<=\d)\.(?=\d)", ",", text).replace("；", "。")
