"""Rewards for words, form and variety: values derived by hand, and the texts that game them."""

from __future__ import annotations

import random
import time

import pytest
from typer.testing import CliRunner

from burnish.api import score
from burnish.cli.app import app
from burnish.errors import InputError
from burnish.rewards.library import format
from burnish.rewards.library.diversity import compression, group_diversity
from burnish.rewards.library.format import json_format, length_band, regex
from burnish.rewards.library.keywords import common_subsequence, keywords, rouge_l
from burnish.rewards.library.overlap import LONGEST_TER, chrf, ter
from burnish.rewards.registry import REWARDS, reward_function
from burnish.types import Completion, Prompt

ODD_TEXTS = [
    "",
    " \n\t",
    "½ ² ①",
    "\x00\ufffd",
    "\ud83d",
    "😀👩‍👩‍👧🇨🇭",
    "?!...;;",
    "a" * 3000,
    "la " * 1000,
    "我爱你。" * 50,
]


def answer(text: str, reference: str | None = "true", *, id: str = "p", keywords: object = None) -> Completion:
    metadata = {} if keywords is None else {"keywords": keywords}
    return Completion(Prompt(id, "?", reference, metadata), (0,), (1,), text, (0.0,), "stop")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    completion = answer(text, "la la naïve 我爱你")
    values = [
        chrf(completion),
        ter(completion),
        ter(completion, chinese=True),
        rouge_l(completion),
        keywords(completion),
    ]
    values += [length_band(text), length_band(text, unit="characters"), regex(text, pattern=".*"), json_format(text)]
    values += [compression(text), *group_diversity([completion, answer("la la"), answer("", id="q")])]
    assert all(0.0 <= value <= 1.0 for value in values)


# chrF and TER -------------------------------------------------------------------------------------------------------


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


def test_ter_reads_no_further_than_it_says() -> None:
    reference = "b " * (LONGEST_TER // 2)
    assert ter(answer(reference + "and a tail that nobody reads", reference)) == 1.0


# ROUGE-L and keywords -----------------------------------------------------------------------------------------------


def slow_common(first: str, second: str) -> int:
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return slow_common(first[:-1], second[:-1]) + 1
    return max(slow_common(first[:-1], second), slow_common(first, second[:-1]))


def test_common_subsequence_against_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(300):
        first, second = ("".join(rng.choice("abc") for _ in range(rng.randrange(8))) for _ in range(2))
        assert common_subsequence(first, second) == common_subsequence(second, first) == slow_common(first, second)


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
        (answer("x", keywords=["a", "!"]), "without a letter"),
    ],
)
def test_keywords_need_something_to_look_for(completion: Completion, message: str) -> None:
    with pytest.raises(InputError, match=message):
        keywords(completion)


# Form ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("", "words", 0.0),
        ("one", "words", 1 / 2),
        ("one two", "words", 1.0),
        ("one, two, three!", "words", 1.0),
        ("a b c d", "words", (6 - 4) / 3),
        ("a " * 6, "words", 0.0),
        ("a " * 600, "words", 0.0),
        ("我爱你", "words", 1.0),
        ("!? ...", "words", 0.0),
        ("a    b", "characters", 1.0),  # spaces are no way to be longer
        ("filler filler", "words", 1.0),  # says nothing, scores in full: 'Fails by'
    ],
)
def test_length_band_by_hand(text: str, unit: str, value: float) -> None:
    assert length_band(text, low=2, high=3, unit=unit) == pytest.approx(value)


def test_a_band_from_nothing() -> None:
    assert length_band("", low=0, high=1) == 1.0


@pytest.mark.parametrize(
    ("text", "pattern", "value"),
    [
        ("42", "[0-9]+", 1.0),
        (" 42\n", "[0-9]+", 1.0),
        ("it is 42", "[0-9]+", 0.0),  # the whole text
        ("", "[0-9]+", 0.0),
        ("", "a?", 1.0),
        ("答案：七", "答案：.", 1.0),
        ("a\nb", ".*", 0.0),
        ("a\nb", "(?s).*", 1.0),
        ("9" * 1001, "[0-9]+", 0.0),  # longer than `longest`
        ("99999", "[0-9]+", 1.0),  # any number does: 'Fails by'
    ],
)
def test_regex_by_hand(text: str, pattern: str, value: float) -> None:
    assert regex(text, pattern=pattern) == value


@pytest.mark.parametrize(
    ("text", "pattern", "value"),
    [
        # The format reward of DeepSeek-R1, whose repeats have a thousand million ways to divide 1000 characters.
        ("<think>2 + 2</think>\n<answer>4</answer>", r"(?s)<think>.*?</think>\s*<answer>.*?</answer>", 1.0),
        ("<think>" * 140, r"(?s)<think>.*?</think>\s*<answer>.*?</answer>", 0.0),
        ("a-slug-of-words", "[a-z]+(-[a-z]+)*", 1.0),  # a repeat in a repeat
        ("was was", r"(\w+) \1", 1.0),
        ("was it", r"(\w+) \1", 0.0),
        ("ab", "(a)?(?(1)b|c)", 1.0),
        ("यह हिन्दी है", r"[\w ]+", 1.0),  # vowel signs belong to words
    ],
)
def test_regex_has_no_forbidden_constructs(text: str, pattern: str, value: float) -> None:
    assert regex(text, pattern=pattern) == value


@pytest.mark.parametrize("pattern", ["(a|a)*b|a*", "(?=(a+)+b)c", "(a{1,30}){1,30}", "(?R)?b"])
def test_a_text_on_which_a_pattern_takes_exponential_time_does_not_match(pattern: str, monkeypatch) -> None:
    monkeypatch.setattr(format, "SECONDS", 0.05)
    before = time.process_time()
    assert regex("a" * 901 + "!", pattern=pattern, longest=1000) == 0.0
    # The limit is looked at now and then.
    assert time.process_time() - before < 1.0


def test_counts_that_the_compiler_would_write_out_are_refused() -> None:
    with pytest.raises(InputError, match="repeats more than 1,000,000 times: lower the counts in braces"):
        regex("a", pattern="(?:(?:a{1000}){1000}){1000}")
    assert regex("2026-01-31", pattern="[0-9]{4}-[0-9]{2}-[0-9]{2}") == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "Li", "age": 7}', 1.0),
        ('{"name": "李", "age": 7, "more": null}', 1.0),
        ('{"name": "Li", "age": 7.0}', 2 / 3),
        ('{"name": "Li", "age": true}', 2 / 3),  # a boolean is no integer, although Python says so
        ('{"name": 1}', 1 / 3),
        ("{}", 1 / 3),
        ('{"name": "", "age": 0}', 1.0),  # empty values score in full: 'Fails by'
        ("", 0.0),
        ("[]", 0.0),
        ('{"name": "Li", "age": 7} as asked', 0.0),
        ('{"name": "Li", "name": "Li", "age": 7}', 0.0),
        ('{"name": NaN}', 0.0),
        ("{'name': 1}", 0.0),
        ("[" * 100_000, 0.0),
        ('{"age": ' + "9" * 5000 + "}", 0.0),
        ('```json\n{"name": "Li", "age": 7}\n```', 0.0),
    ],
)
def test_json_by_hand(text: str, value: float) -> None:
    assert json_format(text, required={"name": "string", "age": "integer"}) == pytest.approx(value)


def test_json_options() -> None:
    assert json_format('```json\n{"a": [1]}\n```', required={"a": "array"}, fenced=True) == 1.0
    assert json_format('so:\n```json\n{"a": [1]}\n```', required={"a": "array"}, fenced=True) == 0.0
    assert json_format('{"a": 1, "b": 2}', required={"a": "number"}, extra=False) == 0.0
    assert json_format("{}") == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regex", {}, "pattern is missing"),
        ("regex", {"pattern": "("}, r"pattern = '\(' is not a regular expression: missing \)"),
        ("regex", {"pattern": "a", "longest": 0}, "longest = 0"),
        ("length_band", {"low": 5, "high": 4}, "low = 5, high = 4"),
        ("length_band", {"unit": "word"}, r"unknown unit = 'word' \(did you mean 'words'"),
        ("json_format", {"required": {"a": "int"}}, r"required.a = 'int'.*known types are string, integer"),
        ("json_format", {"required": {"a": 1}}, r"required.a = 1: known types"),
        ("json_format", {"required": {"a": [1]}}, r"required.a = \[1\]: known types"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_recipe(name: str, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        REWARDS.get(name).check_options(options)


def test_an_option_may_not_hide_behind_a_key_of_the_table() -> None:
    with pytest.raises(InputError, match="option 'gate' is a key of every"):
        reward_function("mine", lambda text, *, gate=0.0: 1.0)


# Variety ------------------------------------------------------------------------------------------------------------


def test_compression_by_hand() -> None:
    # One byte: 3 bits of header, 8 for the letter, 7 for the end: 18 bits, 3 bytes, less 2, of 1.
    assert compression("a") == compression("") == 1.0
    # A pair of length and distance stands for at most 258 letters, and takes at least 2 bits.
    assert 2 / 8 / 258 < compression("a" * 258_000) < 0.01
    noise = "".join(random.Random(0).choices("abcdefghijklmnop", k=4000))
    # Sixteen letters alike hold 4 bits of the 8 of each.
    assert 0.5 <= compression(noise) < 0.6


def test_saying_it_again_costs_in_every_language() -> None:
    for text in ("the quick brown fox jumps over the lazy dog. ", "我家门前有两棵树，一棵是枣树，还有一棵也是枣树。"):
        assert compression(text) > compression(text * 3) > compression(text * 30)
    assert compression("short") == 1.0  # 'Fails by'


def test_group_diversity_by_hand() -> None:
    group = [answer("a b c"), answer("a b d"), answer("a b")]
    # Bigrams ab bc: ab is held by both others (1 - 2/2), bc by none (1): mean 1/2. The third has ab alone: 0.
    assert group_diversity(group) == pytest.approx([0.5, 0.5, 0.0])
    # Wherever they stand, and whatever else is in the batch.
    mixed = [group[0], answer("a b c", id="q"), group[1], answer("x y", id="q"), group[2]]
    assert group_diversity(mixed) == pytest.approx([0.5, 1.0, 0.5, 1.0, 0.0])
    assert group_diversity([answer("我爱你"), answer("我爱她")]) == pytest.approx([0.5, 0.5])
    assert group_diversity([answer("same old"), answer("same old")]) == [0.0, 0.0]
    assert group_diversity([answer(""), answer("word")]) == [0.0, 0.0]
    assert group_diversity([answer("a b c")]) == [1.0]
    assert group_diversity([answer("zq xv"), answer("a b")]) == [1.0, 1.0]  # nonsense scores in full: 'Fails by'
    assert group_diversity([]) == []
    with pytest.raises(InputError, match="n = 0"):
        group_diversity(group, n=0)


# By name ------------------------------------------------------------------------------------------------------------


def test_a_reward_in_a_package_takes_options_too() -> None:
    name = "burnish.rewards.library.format:length_band"
    found = CliRunner().invoke(
        app, ["score", "我爱你", "--use", name, "--set", f"{name}.low=6", "--set", f"{name}.unit=words"]
    )
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("length_band 0.5 ")  # three of six


def test_the_command_line_passes_options_on() -> None:
    found = CliRunner().invoke(
        app, ["score", "42", "x", "--use", "regex", "--use", "chrf", "--set", "regex.pattern='[0-9]+'",
              "--reference", "42"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert found.stdout.split("\n")[:2] == ["regex 1  chrf 1  42", "regex 0  chrf 0  x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regx": {"pattern": "a"}}, r"options for 'regx' \(did you mean 'regex'"),
        ({"regex": {"patern": "a"}}, r"'regex' has no option 'patern' \(did you mean 'pattern'\?\); known: pattern"),
        ({"regex": {"credit": "token"}}, r"'regex' has no option 'credit'; known: pattern, longest$"),
        ({"regex": {"weight": 2.0}}, r"'regex' has no option 'weight'; known: pattern"),
        ({}, "pattern is missing"),
    ],
)
def test_options_are_checked_before_anything_is_scored(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score(["a"], rewards=["regex"], options=options)
    setting = CliRunner().invoke(app, ["score", "a", "--set", "n=3"])
    assert isinstance(setting.exception, InputError) and "repetition.n=3" in str(setting.exception)
