"""ROUGE-L and keywords: values derived by hand, and the texts that game them."""

from __future__ import annotations

import random

import pytest

from burnish.errors import InputError
from burnish.rewards.library.keywords import keywords
from burnish.rewards.library.overlap import common_subsequence, rouge_l
from burnish.types import Completion
from tests.rewards.completions import ODD_TEXTS, answer


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    completion = answer(text, "la la naïve 我爱你")
    assert 0.0 <= rouge_l(completion) <= 1.0
    assert 0.0 <= keywords(completion) <= 1.0


def common_length(first: str, second: str) -> int:
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return common_length(first[:-1], second[:-1]) + 1
    return max(common_length(first[:-1], second), common_length(first, second[:-1]))


def test_common_subsequence_against_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(300):
        first, second = ("".join(rng.choice("abc") for _ in range(rng.randrange(8))) for _ in range(2))
        assert common_subsequence(first, second) == common_subsequence(second, first) == common_length(first, second)


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        # Lin 2004, section 3: "police killed the gunman" with "police kill the gunman" and "the gunman kill police".
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("The cat!", "the cat", 1.0),
        ("the cat", "the cat sat on it", 2 * 1 * 0.4 / 1.4),  # P = 1, R = 2/5
        ("我很爱你", "我爱你。", 2 * 0.75 * 1 / 1.75),  # P = 3/4, R = 1
        ("", "the cat", 0.0),
        ("...", "the cat", 0.0),
        ("cat", "...", 0.0),
    ],
)
def test_rouge_l_by_hand(text: str, reference: str, value: float) -> None:
    assert rouge_l(answer(text, reference)) == pytest.approx(value)


def test_rouge_l_is_gamed_by_frequent_words_and_says_so() -> None:
    assert rouge_l(answer("the of and the of", "the roof of a house and the end of it")) > 0.6
    assert "frequent words" in (rouge_l.__doc__ or "")


def test_beta_weighs_recall() -> None:
    # P = 1, R = 2/5: (1 + 4) * 0.4 / (0.4 + 4) at beta 2.
    assert rouge_l(answer("the cat", "the cat sat on it"), beta=2.0) == pytest.approx(2.0 / 4.4)
    with pytest.raises(InputError, match="beta = 0"):
        rouge_l(answer("a"), beta=0.0)


@pytest.mark.parametrize(
    ("text", "reference", "listed", "value"),
    [
        ("a party", None, ["art", "party"], 0.5),
        ("The New York Times", None, ["new york", "york times", "new times"], 2 / 3),  # side by side only
        ("the mayor opens it", "The mayor opened a bridge, the bridge", None, 1 / 3),  # mayor, opened, bridge
        ("我在北京", "北京很大", None, 1 / 3),  # 北京, 京很, 很大
        ("", "The mayor", None, 0.0),
        ("bridge mayor opened", "The mayor opened a bridge", None, 1.0),  # a mere list earns all: 'Fails by'
    ],
)
def test_keywords_by_hand(text: str, reference: str | None, listed: object, value: float) -> None:
    assert keywords(answer(text, reference, keywords=listed)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        (answer("x", None), "prompt 'p' has none"),
        (answer("x", "a b c"), "no word of 4 letters: lower min_letters"),
        (answer("x", keywords="text"), "must be a list of texts"),
        (answer("x", keywords=[]), "has no keywords"),
        (answer("x", keywords=["a", "!"]), "without letters"),
    ],
)
def test_keywords_need_something_to_look_for(completion: Completion, message: str) -> None:
    with pytest.raises(InputError, match=message):
        keywords(completion)


def test_full_width_forms_equal_ordinary_ones() -> None:
    assert rouge_l(answer("１２人", "12人")) == 1.0 == keywords(answer("ＡＢＣＤ", "abcd"))
