"""BLEU, chrF, TER and exact match: values derived by hand, and the texts that game them."""

from __future__ import annotations

import math

import pytest

from burnish.errors import InputError
from burnish.rewards.library.answers import exact
from burnish.rewards.library.overlap import LONGEST_TER, bleu, chrf, ter, tokenizer_for
from tests.rewards.completions import ODD_TEXTS, answer


@pytest.mark.parametrize(
    ("text", "reference", "tokenize", "value"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", "13a", 1.0),
        # Precisions 3/3, 2/2, 1/1 and no 4-gram at all; brevity penalty exp(1 - 6/3).
        ("the cat sat", "the cat sat on the mat", "13a", math.exp(-1)),
        # Precisions 1/2 and 0/1, the zero smoothed to 1/(2*1): sqrt(1/2 * 1/2).
        ("the dog", "the cat", "13a", 0.5),
        # Characters: 2/3, 1/2, 0/1 smoothed to 1/2; cube root of 1/6.
        ("我爱你", "我爱她", "zh", (1 / 6) ** (1 / 3)),
        # Without the Chinese tokenizer that is one wrong word.
        ("我爱你", "我爱她", "13a", 0.0),
        ("", "the cat", "13a", 0.0),
        ("😀", "the cat", "13a", 0.0),
    ],
)
def test_bleu_by_hand(text: str, reference: str, tokenize: str, value: float) -> None:
    assert bleu(answer(text, reference=reference), tokenize=tokenize) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    assert 0.0 <= bleu(answer(text, reference="la la naïve 😀")) <= 1.0
    assert 0.0 <= bleu(answer("la la naïve 😀", reference=text or "x") if text.strip() else answer("x")) <= 1.0
    completion = answer(text, "la la naïve 我爱你")
    for value in (chrf(completion), ter(completion), ter(completion, chinese=True)):
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("function", [bleu, exact])
@pytest.mark.parametrize("reference", [None, "", "  "])
def test_a_missing_reference_is_named(function, reference) -> None:
    with pytest.raises(InputError, match=r"prompt 'article-7' has none: .*reference"):
        function(answer(reference=reference, id="article-7"))


def test_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown tokenize = '13b' \(did you mean '13a'\?\); known: .*zh"):
        bleu(answer(), tokenize="13b")


def test_chinese_needs_no_setting() -> None:
    # BLEU: 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple (smoothed to 1/2): (2/3 * 1/2 * 1/2) ** (1/3).
    assert bleu(answer("我爱你", "我爱她")) == bleu(answer("我爱你", "我爱她"), tokenize="zh") > 0.4
    assert ter(answer("我爱你", "我爱她")) == pytest.approx(2 / 3)
    assert bleu(answer("the cat", "the dog")) == bleu(answer("the cat", "the dog"), tokenize="13a")


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["我爱你。"], "zh"), (["我爱 GPT 和 BERT"], "zh"), (["I love 你"], "13a"), (["これは猫です"], "char"),
        (["hello"], "13a"),
        ([], "13a"), ([""], "13a"), (["123"], "13a"), (["我爱你", "hello", "你好"], "zh"), (["我爱你", "hello"], "13a"),
        (["나는 너를 사랑해"], "13a"),
    ],
)  # fmt: skip
def test_which_tokenizer_fits(references: list[str], tokenizer: str) -> None:
    assert tokenizer_for(references) == tokenizer


@pytest.mark.parametrize(
    ("text", "value"), [("我爱你。", 1.0), (" 我爱你。\n", 1.0), ("我爱你", 0.0), ("我 爱你。", 0.0), ("", 0.0)]
)
def test_exact(text: str, value: float) -> None:
    assert exact(answer(text, reference="我爱你。 ")) == value


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("abc", "abc", 1.0),
        # Orders with runs on both sides: P = 1, 1 -> 1; R = 2/3, 1/2 -> 7/12. 5PR / (4P + R) = (35/12) / (55/12).
        ("ab", "abc", 7 / 11),
        ("我爱你", "我爱她", 7 / 18),  # P = R = mean of 2/3, 1/2, 0/1
        ("我 爱 你", "我爱你", 1.0),  # without white space
        ("", "abc", 0.0),
        ("xyz", "abc", 0.0),
        # Padded: P = 2/8, 1/7 -> 11/56; R = 1. 5 * 11/56 / (4 * 11/56 + 1) = 55/100: padding is cheap.
        ("abxxxxxx", "ab", 0.55),
    ],
)
def test_chrf_by_hand(text: str, reference: str, value: float) -> None:
    assert chrf(answer(text, reference)) == pytest.approx(value, abs=1e-12)


def test_chrf_with_words_by_hand() -> None:
    mixed = answer("ab c", "ab d")
    # Characters 2/3, 1/2, 0/1; words 1/2, 0/1; P = R, their mean.
    assert chrf(mixed, word_order=2) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 5)
    assert chrf(mixed) == pytest.approx(7 / 18)
    with pytest.raises(InputError, match="word_order = 3"):
        chrf(mixed, word_order=3)


@pytest.mark.parametrize(
    ("text", "reference", "chinese", "value"),
    [
        ("The CAT", "the cat", False, 1.0),
        ("the dog", "the cat", False, 0.5),  # one word replaced, of two
        ("cat the", "the cat", False, 0.5),  # one shift
        ("the", "the cat sat", False, 1 / 3),  # two words missing, of three
        ("the cat a a a", "the cat", False, 0.0),  # three too many: below 0, cut
        ("", "the cat", False, 0.0),
        ("我爱你", "我爱她", True, 2 / 3),
        ("我爱你", "我爱她", False, 2 / 3),  # a Chinese reference is seen as such
    ],
)
def test_ter_by_hand(text: str, reference: str, chinese: bool, value: float) -> None:
    assert ter(answer(text, reference), chinese=chinese) == pytest.approx(value, abs=1e-12)


@pytest.mark.slow
def test_ter_reads_no_further_than_it_says() -> None:
    reference = "b " * (LONGEST_TER // 2)
    assert ter(answer(reference + "and a tail that nobody reads", reference)) == 1.0
