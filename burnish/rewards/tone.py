"""Rewards for how a text sounds: its sentiment, and whether it swears. Word lists and small models inside packages."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from burnish.errors import InputError
from burnish.extras import needed
from burnish.registry import nearest
from burnish.rewards.diversity import mostly_unspaced
from burnish.rewards.registry import checked_by

LANGUAGES = ("auto", "en", "zh")
LONGEST = 4000
"""Characters of a text that are read: what the lists cost grows with the text."""
# On the package's lists, and in the newspaper every day.
_ORDINARY = """
    激情 成人 祖宗 老二 老母 卵子 精子 月经 靠背 后庭 处女 乳房 乳头 交配 私服 迷药 野鸡 屁股 包皮 花柳 刚度 九游 奶 卵
    13. sex sexual sexuality sexually breasts nipple nipples penis vagina rectum semen
    anus nude nudity cock domination dominatrix escort raping rape rapist suck sucks erotic swastika
""".split()  # noqa: SIM905 - to be read as one list


def _check_sentiment(*, language: str) -> None:
    if language not in LANGUAGES:
        raise InputError(
            f"sentiment: unknown language = '{language}'{nearest(language, LANGUAGES)}; known: {', '.join(LANGUAGES)}"
        )


@checked_by(_check_sentiment)
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
    if language == "zh" or (language == "auto" and mostly_unspaced(text)):
        return 2.0 * float(_snownlp()(text)) - 1.0
    return float(_vader()(text)["compound"])


@lru_cache(maxsize=1)
def _vader() -> Callable[[str], Any]:
    module = needed("vaderSentiment.vaderSentiment", "sentiment", "reward 'sentiment'")
    scores: Callable[[str], Any] = module.SentimentIntensityAnalyzer().polarity_scores
    return scores


@lru_cache(maxsize=1)
def _snownlp() -> Callable[[str], Any]:
    classify: Callable[[str], Any] = needed("snownlp.sentiment", "sentiment", "reward 'sentiment' in Chinese").classify
    return classify


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
