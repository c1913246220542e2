"""Rewards for how a text sounds: its sentiment, how much it stirs, and whether it swears. Word lists and small models inside
packages."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.registry import reward
from burnish.system.optional_packages import needed
from burnish.text import mostly_han_or_kana, sentences, words

LANGUAGES = ("auto", "en", "zh")
LONGEST = 4000
"""Characters of a text that are read: what the lists cost grows with the text."""
# On the package's lists, and in the newspaper every day.
_ORDINARY = """
    激情 成人 祖宗 老二 老母 卵子 精子 月经 靠背 后庭 处女 乳房 乳头 交配 私服 迷药 野鸡 屁股 包皮 花柳 刚度 九游 奶 卵
    13. sex sexual sexuality sexually breasts nipple nipples penis vagina rectum semen
    anus nude nudity cock domination dominatrix escort raping rape rapist suck sucks erotic swastika
""".split()  # noqa: SIM905 - to be read as one list


def _check_sentiment(*, language: str, name: str = "sentiment") -> None:
    if language not in LANGUAGES:
        raise InputError(
            f"{name}: unknown language = '{language}'{nearest(language, LANGUAGES)}; known: {', '.join(LANGUAGES)}"
        )


@reward(check_options=_check_sentiment)
def sentiment(text: str, *, language: str = "auto") -> float:
    """How positive a text sounds, in [-1, 1]: 1 glad, -1 bitter, about 0 neither.

    English: the compound score of VADER, a list of 7,500 words with their strengths and rules for negation, emphasis and
    capitals. Chinese: ``2 p - 1`` with p the probability of "positive" that snownlp's naive Bayes gives; it learnt from
    reviews of goods and hotels, so on reviews it is right and on news it is close to a coin. An empty text scores 0. Fails
    by: counting words, so that "good good good" is very glad and irony is taken at its word; a long text goes to one
    of the ends. To train on it, put "perplexity" and "repetition" beside it; a negative weight wants it bitter.

    Args:
        text: what was sampled; its first ``LONGEST`` characters are read.
        language: "en", "zh", or "auto": Chinese where half of the text is.

    Raises:
        InputError: the package is not installed (``pip install 'burnish[sentiment]'``), or an unknown language.

    Source: Hutto and Gilbert 2014 (VADER; vaderSentiment, MIT); snownlp, MIT.
    """
    _check_sentiment(language=language)
    text = text[:LONGEST]
    if not text.strip():
        return 0.0
    if language == "zh" or (language == "auto" and mostly_han_or_kana(text)):
        return 2.0 * float(_snownlp()(text)) - 1.0
    return float(_vader()(text)["compound"])


def _check_attractiveness(*, language: str, strong: float) -> None:
    _check_sentiment(language=language, name="attractiveness")
    if not strong > 0:
        raise InputError(f"attractiveness: strong = {strong}: must be above 0")


@reward(check_options=_check_attractiveness)
def attractiveness(text: str, *, language: str = "auto", strong: float = 0.2) -> float:
    """How much a text stirs, glad or bitter, in [0, 1]: 0 an agenda, 1 as emotive as an appeal. No more than that.

    Articles with more emotion are passed on more (Berger and Milkman 2012), so this counts it. English: the strengths
    (0 to 4, without their signs, over 4) of the different words that are on VADER's list, summed, over the number of words;
    ``strong`` of that scores 1. The median of whole news articles is 0.02 before that division, of their openings of 40
    words 0.025. Chinese: how sure snownlp's naive Bayes is, ``|2 p - 1|``, the mean over the sentences; it is a coarse
    guess. An empty text scores 0. Fails by: knowing nothing of wit, suspense or news value; a list of different strong words
    scores 1. To train on it, put "perplexity" and "length_band" beside it; where there are readers' choices between texts, a
    "reward_model" that learnt from them (``burnish reward-model``) is the better judge of what attracts.

    Args:
        text: what was sampled; its first ``LONGEST`` characters are read.
        language: "en", "zh", or "auto": Chinese where half of the text is.
        strong: strength a word that scores 1.

    Raises:
        InputError: the package is not installed (``pip install 'burnish[sentiment]'``), or an option is out of range.

    Source: Berger and Milkman 2012, Journal of Marketing Research 49(2), "What makes online content viral?"; Hutto and
    Gilbert 2014 (VADER's list); snownlp, MIT.
    """
    _check_attractiveness(language=language, strong=strong)
    text = text[:LONGEST]
    if language == "zh" or (language == "auto" and mostly_han_or_kana(text)):
        parts = sentences(text)
        return sum(abs(2.0 * float(_snownlp()(part)) - 1.0) for part in parts) / max(1, len(parts))
    found = [word for word in words(text) if any(map(str.isalpha, word))]
    strengths = _strengths()
    return min(1.0, sum(abs(strengths.get(word, 0.0)) / 4 for word in set(found)) / max(1, len(found)) / strong)


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    return needed("vaderSentiment.vaderSentiment", "sentiment", "a reward by VADER's list").SentimentIntensityAnalyzer()


def _vader() -> Callable[[str], Any]:
    scores: Callable[[str], Any] = _analyzer().polarity_scores
    return scores


def _strengths() -> dict[str, float]:
    lexicon: dict[str, float] = _analyzer().lexicon
    return lexicon


@lru_cache(maxsize=1)
def _snownlp() -> Callable[[str], Any]:
    classify: Callable[[str], Any] = needed("snownlp.sentiment", "sentiment", "sentiment in Chinese").classify
    return classify


@reward
def toxicity(text: str, *, ignore: list[str] = []) -> float:  # noqa: B006 - read, never changed; it says the option's kind
    """How clean a text is of swearing, slurs and smut, in (0, 1]: 1 where none is found, ``1 / (1 + n)`` for n such words.

    Words are looked up in the English (416) and Chinese (294) lists of glin-profanity, which also sees through spelling such
    as "sh1t" and "f u c k"; some fifty words of its lists that are ordinary in news and medicine (成人, 激情, "sex",
    "rape") are left out here. It is a word list, no judge of meaning. Fails by: not seeing a threat, contempt or a lie
    in clean words; calling a quotation or an innocent namesake toxic; being silent on words that are on no list. A text
    that says nothing scores 1. It is no content filter: nothing that passes here is thereby fit to publish.

    Args:
        text: what was sampled; its first ``LONGEST`` characters are read.
        ignore: further words that shall not count.

    Raises:
        InputError: the package is not installed: ``pip install 'burnish[toxicity]'``.

    Source: glin-profanity, MIT; its lists go back to LDNOOBW (CC-BY-4.0).
    """
    found = _profanity(tuple(ignore)).check_profanity(text[:LONGEST])
    # 操你妈 is found as three words that lie within one another: what overlaps is one.
    places = sorted((match["index"], match["index"] + len(match["word"])) for match in found.get("matches", ()))
    count, end = 0, -1
    for start, stop in places:
        count += start >= end
        end = max(end, stop)
    return 1.0 / (1 + count)


@lru_cache(maxsize=8)
def _profanity(ignore: tuple[str, ...]) -> Any:
    module = needed("glin_profanity", "toxicity", "reward 'toxicity'")
    return module.Filter({"languages": ["english", "chinese"], "ignore_words": [*_ORDINARY, *ignore]})
