"""Words, sentences and n-grams in many scripts, each expected value counted by hand."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from burnish.errors import InputError
from burnish.rewards.library.format import length_band
from burnish.rewards.library.information import informativeness, readability
from burnish.rewards.library.overlap import rouge_l, ter, tokenizer_for
from burnish.tasks.news import articles
from burnish.text import lexical_words, mostly_han_or_kana, mostly_unspaced, ngrams, sentences, words
from burnish.types import Completion, Prompt

HINDI = "हिन्दी भाषा सुंदर है"
THAI = "ลังเก็บคน"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, THE cat", ["the", "cat", ",", "the", "cat"]),
        ("Don't 'quote' rock ’n’ roll", ["don't", "'", "quote", "'", "rock", "’", "n", "’", "roll"]),
        ("3.14 e.g. snake_case m²", ["3", ".", "14", "e", ".", "g", ".", "snake_case", "m²"]),
        ("我爱你。GPT-2很好", ["我", "爱", "你", "。", "gpt", "-", "2", "很", "好"]),
        ("ひらカナーを、", ["ひ", "ら", "カ", "ナ", "ー", "を", "、"]),
        ("?!... ——", ["?", "!", ".", ".", ".", "—", "—"]),
        ("!!😀😀", ["!", "!", "😀", "😀"]),
        (" \n", []),
        # Every script below was cut at its combining marks, or was one word from space to space, with the \w of ``re``.
        (HINDI, ["हिन्दी", "भाषा", "सुंदर", "है"]),
        ("বাংলা ভাষা সুন্দর।", ["বাংলা", "ভাষা", "সুন্দর", "।"]),
        ("اَللُّغَةُ الْعَرَبِيَّةُ؟", ["اَللُّغَةُ", "الْعَرَبِيَّةُ", "؟"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("cafe\u0301s", ["cafés"]),
        ("Русский язык, ёлка", ["русский", "язык", ",", "ёлка"]),
        ("한국어는 아름답다.", ["한국어는", "아름답다", "."]),
        (THAI, ["ลั", "ง", "เ", "ก็", "บ", "ค", "น"]),
        ("คำ", ["คำ"]),
        ("ລາວ", ["ລ", "າ", "ວ"]),
        ("ភាសា", ["ភា", "សា"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ไทย 2567 GPT", ["ไ", "ท", "ย", "2567", "gpt"]),
        ("葛\U000e0100城", ["葛\U000e0100", "城"]),
        ("ﾊﾟﾝ", ["ﾊﾟ", "ﾝ"]),
        ("👩\u200d👩\u200d👧❤\ufe0f🇨🇭👍🏽", ["👩\u200d👩\u200d👧", "❤\ufe0f", "🇨🇭", "👍🏽"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize("text", ["é ü ñ", "Русский й", "한국어", "がぎぐ", "हिन्दी ज़", "ấ"])
def test_composed_and_decomposed_spellings_are_the_same_words(text: str) -> None:
    assert words(unicodedata.normalize("NFD", text)) == words(text)


def test_lexical_words_leave_out_punctuation_and_emoji() -> None:
    assert lexical_words("Well, 2 cats! 😀 我。") == ["well", "2", "cats", "我"]
    assert lexical_words(HINDI + "।") == words(HINDI)


def old_words(text: str) -> list[str]:
    """The definition up to version 0.1, by ``re``: right for English and Chinese, whose figures must not move."""
    unspaced = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    return re.findall(
        rf"[{unspaced}]|[^\W{unspaced}]+(?:['’][^\W{unspaced}]+)*|[^\w\s]",
        text.lower(),
    )


@pytest.mark.model
def test_english_news_has_the_same_words_and_sentences_as_before() -> None:
    corpus, _ = articles()
    assert len(corpus) > 300
    for article in corpus:
        assert words(article.text) == old_words(article.text)
        ends = [part for part in re.split("[.!?…。！？．｡\n]+", article.text) if part.strip()]
        assert sentences(article.text) == ends


def test_chinese_has_the_same_words_and_sentences_as_before() -> None:
    for page in sorted(Path(__file__).parent.parent.glob("**/*zh*.md")):
        text = page.read_text(encoding="utf-8")
        assert words(text) == old_words(text), page
        assert sentences(text) == [part for part in re.split("[.!?…。！？．｡\n]+", text) if part.strip()], page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two?! Three… 3.5", ["One", " Two", " Three", " 3", "5"]),
        ("我爱你。真的！", ["我爱你", "真的"]),
        ("यह एक है। वह दो है॥", ["यह एक है", " वह दो है"]),
        ("هل هذا؟ نعم", ["هل هذا", " نعم"]),
        ("ភាសា។ ភាសា", ["ភាសា", " ភាសា"]),
        ("one line\n\n  \nanother", ["one line", "another"]),
        (" .\n", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "unspaced", "chinese"),
    [
        ("我爱你 you", True, True),  # 3 of 4
        ("我 you and I", False, False),  # 1 of 4
        ("カナ one two", True, True),  # 2 of 4
        (THAI, True, False),
        (HINDI, False, False),
        ("한국어는 아름답다", False, False),
        ("...", False, False),
        ("", False, False),
    ],
)
def test_mostly(text: str, unspaced: bool, chinese: bool) -> None:
    assert (mostly_unspaced(text), mostly_han_or_kana(text)) == (unspaced, chinese)


def test_ngrams() -> None:
    assert list(ngrams("abcd", 2)) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert list(ngrams("ab", 3)) == []
    with pytest.raises(InputError, match="n = 0: an n-gram has at least one token"):
        ngrams("ab", 0)


def answer(text: str, reference: str) -> Completion:
    return Completion(Prompt("p", "prompt", reference), (1,), (2,), text, (0.0,), "stop")


def test_rewards_count_the_words_of_every_script() -> None:
    # Four words; they counted as 16 while vowel signs ended a word.
    assert length_band(HINDI, low=4, high=4) == 1.0
    # One word of four differs: L = 3, so P = R = F = 3/4.
    assert rouge_l(answer(HINDI.replace("सुंदर", "कठिन"), HINDI)) == pytest.approx(3 / 4)
    # Seven characters, one of them replaced: 1 - 1/7. From space to space it was one word, all wrong.
    assert ter(answer(THAI.replace("บ", "ด"), THAI)) == pytest.approx(6 / 7)
    # Of the six pairs of neighbours, the four without the changed character are left.
    assert informativeness(answer(THAI.replace("บ", "ด"), THAI)) == pytest.approx(4 / 6)
    # Two sentences of seven characters.
    assert readability(f"{THAI}\n{THAI}", form="grade") == 7.0


@pytest.mark.parametrize(
    ("reference", "tokenizer"),
    [("我爱你。", "zh"), ("ひらがな", "char"), (THAI, "char"), (HINDI, "13a"), ("a cat", "13a")],
)
def test_bleu_takes_characters_where_words_have_no_spaces(reference: str, tokenizer: str) -> None:
    assert tokenizer_for([reference]) == tokenizer
