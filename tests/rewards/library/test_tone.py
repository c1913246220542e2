"""Sentiment, emotion and offensive language in English and Chinese, and the texts that game them."""

from __future__ import annotations

import importlib.util

import pytest

from burnish.errors import InputError
from burnish.rewards.library import tone
from burnish.rewards.library.tone import attractiveness, sentiment, toxicity
from tests.rewards.completions import ODD_TEXTS


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"needs the extra {extra}")


needs_vader, needs_snownlp = needs("vaderSentiment", "sentiment"), needs("snownlp", "sentiment")
needs_glin = needs("glin_profanity", "toxicity")


@needs_glin
@needs_vader
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    assert 0.0 < toxicity(text) <= 1.0
    assert -1.0 <= sentiment(text, language="en") <= 1.0
    assert 0.0 <= attractiveness(text, language="en") <= 1.0


@needs_vader
def test_sentiment_in_english() -> None:
    assert sentiment("I love it!") > 0.5 > 0.0 > -0.5 > sentiment("I hate it.")
    assert sentiment("It is not good.") < 0.0 == sentiment("The table has four legs.") == sentiment("  ")
    # Gamed by saying one word over and over.
    assert sentiment("good " * 100) > 0.99


@needs_snownlp
@needs_vader
@pytest.mark.slow
def test_sentiment_in_chinese() -> None:
    assert sentiment("这部电影太好看了，我非常喜欢") > 0.5 > 0.0 > -0.5 > sentiment("质量太差了，非常失望")
    assert abs(sentiment("桌子有四条腿。")) < 0.3
    # Half of the words decide; a language may be said.
    assert sentiment("这部电影太好看了 OK") > 0.3
    assert sentiment("我爱你", language="en") == 0.0


@needs_vader
def test_attractiveness_by_hand() -> None:
    # love 3.2, hate -2.7; four words: (3.2 + 2.7) / 4 / 4 a word, over a strong word's 0.5.
    assert attractiveness("Love and hate, mostly.", strong=0.5) == pytest.approx((3.2 + 2.7) / 4 / 4 / 0.5)
    # The same word again adds nothing, and dilutes.
    assert attractiveness("love love love love", strong=0.5) == pytest.approx(3.2 / 4 / 4 / 0.5)
    assert attractiveness("The committee met on Tuesday.") == attractiveness("") == attractiveness("...") == 0.0
    assert attractiveness("What a lovely, brave, heartbreaking, terrible, amazing story!") == 1.0
    with pytest.raises(InputError, match="strong = 0"):
        attractiveness("x", strong=0)
    with pytest.raises(InputError, match="unknown language = 'french'; known: auto, en, zh"):
        attractiveness("x", language="french")


@needs_vader
def test_attractiveness_adds_in_the_order_of_the_text() -> None:
    # To the last bit, in every process: the order of a set depends on the hash seed.
    words = "love hate brave terrible amazing lovely war hope fear joy crime winner panic hero grief".split()  # noqa: SIM905
    total = sum(abs(tone._analyzer().lexicon.get(word, 0.0)) / 4 for word in words)
    assert attractiveness(" ".join(words), strong=2.0) == total / len(words) / 2.0


@pytest.mark.slow
@needs_snownlp
def test_attractiveness_in_chinese_is_the_mean_over_sentences() -> None:
    stirring, plain = "这个故事太感人了，我哭了！", "委员会周二开会。"
    assert 1.0 >= attractiveness(stirring) > attractiveness(plain) >= 0.0
    both = (attractiveness(stirring) + attractiveness(plain)) / 2
    assert attractiveness(stirring + plain) == pytest.approx(both)
    assert attractiveness("。！", language="zh") == 0.0


@needs_glin
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", 0), ("", 0), ("you shit, you fucking fool", 2), ("sh1t", 1), ("Scunthorpe assassin", 0),
        ("sex education and a rape trial", 0),
        # 操你妈 is one, though three entries of the list lie within it.
        ("操你妈", 1), ("操你妈，你这个傻逼", 2), ("干部操作机器，成人教育充满激情", 0), ("性别平等", 0),
        ("会议在13点开始。", 0), ("他是肥西县人，挨了几巴掌。", 0), ("体操比赛在西瓜批发市场旁边。", 0),
    ],
)  # fmt: skip
def test_toxicity_counts_words(text: str, words: int) -> None:
    assert toxicity(text) == 1 / (1 + words)


@needs_glin
def test_toxicity_ignores_what_it_is_told_to_and_does_not_see_clean_malice() -> None:
    assert toxicity("shit happens", ignore=["shit"]) == 1.0
    assert toxicity("I will find you and you will be sorry.") == 1.0
