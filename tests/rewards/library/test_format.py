"""Length, patterns and JSON: values derived by hand, and options that cannot work."""

from __future__ import annotations

import time

import pytest

from burnish.errors import InputError
from burnish.rewards.library import format
from burnish.rewards.library.format import json_format, length_band, regex
from burnish.rewards.registry import REWARDS
from tests.rewards.completions import ODD_TEXTS


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_reward_stays_in_its_range(text: str) -> None:
    values = [length_band(text), length_band(text, unit="characters"), regex(text, pattern=".*"), json_format(text)]
    assert all(0.0 <= value <= 1.0 for value in values)


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
