"""Rewards for the tone of a text: sentiment, emotion and offensive language, by word lists and small models."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from burnish.errors import InputError
from burnish.rewards.registry import check_choice, reward
from burnish.system.optional_packages import needed
from burnish.text import mostly_han_or_kana, sentences, words

LANGUAGES = ("auto", "en", "zh")
LONGEST = 4000
"""Characters of a text that are read, which bounds the time."""
# Words of the package's lists that are ordinary in newspapers.
_ORDINARY = """
    激情 成人 祖宗 老二 老母 卵子 精子 月经 靠背 后庭 处女 乳房 乳头 交配 私服 迷药 野鸡 屁股 包皮 花柳 刚度 九游 奶 卵
    13. 13点 几巴 操比 瓜批 肥西 sex sexual sexuality sexually breasts nipple nipples penis vagina rectum semen
    anus nude nudity cock domination dominatrix escort raping rape rapist suck sucks erotic swastika
""".split()  # noqa: SIM905 - easier to read as a list of words


def _check_sentiment(*, language: str, name: str = "sentiment") -> None:
    check_choice(name, "language", language, LANGUAGES)


@reward(check_options=_check_sentiment)
def sentiment(text: str, *, language: str = "auto") -> float:
    """How positive a text is, in [-1, 1]: 1 positive, -1 negative, about 0 neutral.

    English: the compound score of VADER, a list of 7,500 words with strengths, and rules for negation, emphasis and
    capitals. Chinese: ``2 p - 1`` with p the probability of "positive" by snownlp's naive Bayes classifier, which was
    trained on reviews of goods and hotels; it is good on reviews and close to chance on news. An empty text scores 0.

    Fails by: counting words, so that "good good good" is very positive and irony is taken literally; a long text tends
    to one of the ends. To train on it, add "perplexity" and "repetition". A negative weight rewards negative texts.

    Args:
        text: the completion's text; only its first ``LONGEST`` characters are read.
        language: "en", "zh", or "auto": Chinese if at least half of the text is.

    Source: Hutto and Gilbert 2014 (VADER; vaderSentiment, MIT); snownlp, MIT.
    """
    _check_sentiment(language=language)
    text = text[:LONGEST]
    if not text.strip():
        return 0.0
    if language == "zh" or (language == "auto" and mostly_han_or_kana(text)):
        return 2.0 * float(_snownlp()(text)) - 1.0
    return float(_analyzer().polarity_scores(text)["compound"])


def _check_attractiveness(*, language: str, strong: float) -> None:
    _check_sentiment(language=language, name="attractiveness")
    if not strong > 0:
        raise InputError(f"attractiveness: strong = {strong}: must be above 0")


@reward(check_options=_check_attractiveness)
def attractiveness(text: str, *, language: str = "auto", strong: float = 0.2) -> float:
    """How much emotion a text expresses, positive or negative, in [0, 1]: 0 for an agenda, 1 for a passionate appeal.

    Articles with more emotion are shared more (Berger and Milkman 2012). English: the sum of the strengths in VADER's
    list of the different words (0 to 4 without sign, divided by 4), divided by the number of words; a mean of
    ``strong`` scores 1. Its median is 0.02 in whole news articles, and 0.025 in their first 40 words. Chinese: the
    certainty of snownlp's naive Bayes classifier, ``|2 p - 1|``, averaged over sentences, which is a rough guess. An
    empty text scores 0.

    Fails by: ignoring wit, suspense and news value; a list of different strong words scores 1. To train on it, add
    "perplexity" and "length_band". If you have readers' choices between texts, a "reward_model" trained on them
    (``burnish reward-model``) is a better judge of what attracts.

    Args:
        text: the completion's text; only its first ``LONGEST`` characters are read.
        language: "en", "zh", or "auto": Chinese if at least half of the text is.
        strong: mean strength per word that scores 1.

    Source: Berger and Milkman 2012, Journal of Marketing Research 49(2), "What makes online content viral?"; Hutto and
    Gilbert 2014 (VADER's list); snownlp, MIT.
    """
    _check_attractiveness(language=language, strong=strong)
    text = text[:LONGEST]
    if language == "zh" or (language == "auto" and mostly_han_or_kana(text)):
        parts = sentences(text)
        return sum(abs(2.0 * float(_snownlp()(part)) - 1.0) for part in parts) / max(1, len(parts))
    tokens = [word for word in words(text) if any(map(str.isalpha, word))]
    strengths: dict[str, float] = _analyzer().lexicon
    # In the order of the text: a sum in the order of a set has other last digits in another process.
    total = sum(abs(strengths.get(word, 0.0)) / 4 for word in dict.fromkeys(tokens))
    return min(1.0, total / max(1, len(tokens)) / strong)


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    return needed("vaderSentiment.vaderSentiment", "sentiment", "a reward by VADER's list").SentimentIntensityAnalyzer()


@lru_cache(maxsize=1)
def _snownlp() -> Callable[[str], Any]:
    classify: Callable[[str], Any] = needed("snownlp.sentiment", "sentiment", "sentiment in Chinese").classify
    return classify


@reward
def toxicity(text: str, *, ignore: list[str] = []) -> float:  # noqa: B006 - never changed
    """How free of swear words, slurs and obscenities a text is, in (0, 1]: ``1 / (1 + n)`` for n such words.

    Words are looked up in the English (416) and Chinese (294) lists of glin-profanity, which also detects spellings
    such as "sh1t" and "f u c k". Some fifty words of its lists that are ordinary in news and medicine (成人, 激情,
    "sex", "rape") do not count. An empty text scores 1. This is not a content filter: a text that passes may not be fit
    to publish.

    Fails by: missing threats, contempt and lies in clean words; counting quotations and innocent names as toxic; and
    missing words that are not in the lists.

    Args:
        text: the completion's text; only its first ``LONGEST`` characters are read.
        ignore: further words that do not count.

    Source: glin-profanity, MIT; its lists are derived from LDNOOBW (CC-BY-4.0).
    """
    matches = _profanity(tuple(ignore)).check_profanity(text[:LONGEST]).get("matches", ())
    # 操你妈 matches three entries that contain one another: overlapping matches count once.
    spans = sorted((match["index"], match["index"] + len(match["word"])) for match in matches)
    count, end = 0, -1
    for start, stop in spans:
        count += start >= end
        end = max(end, stop)
    return 1.0 / (1 + count)


@lru_cache(maxsize=8)
def _profanity(ignore: tuple[str, ...]) -> Any:
    module = needed("glin_profanity", "toxicity", "reward 'toxicity'")
    return module.Filter({"languages": ["english", "chinese"], "ignore_words": [*_ORDINARY, *ignore]})
