"""The evaluation table: digits, results and missing values."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from burnish.reports import wording
from burnish.reports.terminal.tables import evaluation_table, plain_text, print_evaluation

EVALUATION = {
    "bleu": {"before": 0.44, "after": 0.85, "difference": 0.41, "interval": [0.08, 0.71], "p_value": 0.012, "n": 70},
    "distinct_2": {
        "before": 0.947,
        "after": 0.918,
        "difference": -0.029,
        "interval": [-0.04, -0.018],
        "p_value": 0.0004,
        "n": 70,
        "better": "higher",
    },
    "reward/a_part_with_a_name_that_is_long_enough_to_need_more_than_one_line": {"before": 1.0, "after": 1.0},
    "reward": {
        "before": -3.54,
        "after": -3.0,
        "difference": 0.54,
        "interval": [0.36, 0.71],
        "p_value": 0.001,
        "n": 70,
        "better": "higher",
    },
    "length": {"before": math.nan, "after": 44, "difference": None, "interval": [1], "p_value": None},
}


@pytest.mark.parametrize(
    ("difference", "ends", "better", "word"),
    [
        (0.5, [0.1, 0.9], "higher", "better"),
        (0.5, [0.1, 0.9], "lower", "worse"),
        (-0.5, [-0.9, -0.1], "lower", "better"),
        (-0.5, [-0.9, -0.1], "higher", "worse"),
        (-0.5, [-0.9, -0.1], None, "lower"),
        (0.5, [0.1, 0.9], None, "higher"),
        (0.5, [-0.1, 1.1], "higher", "unclear"),
        (0.0, [0.0, 0.0], "higher", "unclear"),
    ],
)
def test_the_result_follows_from_interval_and_direction(difference, ends, better, word):
    assert wording.result({"difference": difference, "interval": ends, "better": better}) == word


def test_a_claim_needs_the_interval_and_the_p_value() -> None:
    entry = {"difference": 0.09, "interval": [0.01, 0.21], "better": "higher"}
    assert wording.result({**entry, "p_value": 0.088}) == "unclear"
    assert wording.result({**entry, "p_value": 0.049}) == wording.result(entry) == "better"
    assert wording.result({**entry, "interval": [-0.01, 0.2], "p_value": 0.01}) == "unclear"


def test_the_p_value_decides_without_an_interval_and_nothing_is_claimed_without_both():
    assert wording.result({"difference": 1.0, "p_value": 0.04, "better": "higher"}) == "better"
    assert wording.result({"difference": 1.0, "p_value": 0.06, "better": "higher"}) == "unclear"
    assert wording.result({"difference": 1.0, "better": "higher"}) == wording.DASH


@pytest.mark.parametrize(
    ("ends", "places"),
    [([0.36, 0.71], 2), ([-0.04, -0.018], 3), ([-19.0, -11.2], 1), ([-30.0, -5.0], 0), ([0.001, 0.0041], 4)],
)
def test_decimals_show_two_digits_of_the_interval(ends, places):
    assert wording.decimals({"interval": ends}) == places


def test_a_number_that_rounds_to_zero_has_no_sign():
    assert wording.fixed(-0.001, 2) == "0.00"
    assert wording.fixed(0.5, 1, sign=True) == "+0.5"
    assert wording.fixed(math.inf, 1) == wording.fixed(None, 1) == wording.fixed(True, 1) == wording.DASH
    assert [wording.short(x) for x in (0, 3.14159, 12345.6, 0.00012, -0.0123)] == [
        "0",
        "3.142",
        "12,346",
        "1.20e-04",
        "-0.0123",
    ]


def test_plain_text_fits_its_width_and_truncates_nothing():
    text = plain_text(EVALUATION)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["reward"][1:] == ["↑", "-3.54", "-3.00", "+0.54", "[+0.36,", "+0.71]", "0.001", "better"]
    assert rows["distinct-2"][-3:] == ["<", "0.001", "worse"]
    assert rows["BLEU"][-1] == "higher"
    assert "70 prompts" in text
    wrapped = "".join(re.split(r"\s{2,}", line.strip())[0] for line in text.splitlines())
    assert "a_part_with_a_name_that_is_long_enough_to_need_more_than_one_line" in wrapped


def test_the_widest_usual_row_stays_in_one_line():
    entry = {"before": 28.28, "after": 29.54, "difference": 1.26, "interval": [0.85, 1.81], "better": "lower"}
    lines = plain_text({"truth_perplexity": {**entry, "p_value": 0.0004, "n": 87}}).splitlines()
    row = next(line for line in lines if line.startswith(" true-text"))
    assert " ".join(row.split()) == "true-text perplexity ↓ 28.28 29.54 +1.26 [+0.85, +1.81] < 0.001 worse"


def test_every_p_value_has_three_decimals_or_is_below_the_least():
    assert [wording.p_text({"p_value": p}) for p in (1, 0.083, 0.001998, 0.0004, None)] == [
        "1.000", "0.083", "0.002", "< 0.001", wording.DASH,
    ]  # fmt: skip


def test_the_reward_comes_first_in_any_order():
    assert wording.ordered(EVALUATION)[0] == "reward"
    assert wording.ordered(EVALUATION)[1].startswith("reward/")
    assert wording.ordered({"odd": {}, "length": {}, "bleu": {}, "note": "text"}) == ["bleu", "length", "odd"]


def test_names_are_neither_markup_nor_control_sequences():
    text = plain_text({"reward/[red]x[/nope]\x1b[2J": {"before": 1}})
    assert "[red]x[/nope]" in text and "\x1b" not in text


def test_only_a_terminal_gets_colours():
    terminal = Console(
        file=io.StringIO(), force_terminal=True, color_system="standard", width=120, legacy_windows=False
    )
    print_evaluation(EVALUATION, terminal)
    assert "\x1b[31mworse" in terminal.file.getvalue()
    pipe = Console(file=io.StringIO(), force_terminal=False)
    print_evaluation(EVALUATION, pipe)
    assert "\x1b" not in pipe.file.getvalue() and "worse" in pipe.file.getvalue()


def test_an_ascii_output_gets_words_for_arrows():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_evaluation(EVALUATION, Console(file=stream, force_terminal=False))
    assert "(up)" in raw.getvalue().decode("ascii") and "?" not in raw.getvalue().decode("ascii")


def test_an_empty_evaluation_is_a_table_without_rows():
    assert evaluation_table({}).row_count == 0
    assert "Held-out" in plain_text({})


def test_an_unclear_result_says_what_could_have_been_shown():
    entry = {"before": 0.5, "after": 0.52, "difference": 0.02, "interval": [-0.0592, 0.0992], "p_value": 0.6, "n": 40}
    # Standard error 0.0792 / 1.96; 2.8 of them are 0.113, and (0.113 / 0.02)^2 times as many prompts show 0.02.
    assert wording.detectable_change(entry) == pytest.approx(2.8 * 0.0792 / 1.96)
    assert wording.power("reward", entry) == (
        "40 prompts show a change of reward of 0.11 in four of five cases, and about 1,300 show one of 0.02, as "
        "measured: raise evaluation.prompts or evaluation.samples_per_prompt, or train for longer"
    )
    assert "of 0.11 in" in plain_text({"reward": entry})
    assert "evaluation.prompts" in " ".join(plain_text({"reward": entry}).split())
    assert "give more rows, or train" in " ".join(plain_text({"loss": entry}).split()), "a supervised run"
    assert wording.power("reward", {**entry, "interval": [0.01, 0.03], "p_value": 0.001}) == ""
    assert wording.power("reward", {**entry, "difference": 0.0, "interval": [0.0, 0.0], "p_value": 1.0}) == ""
    assert "as measured" not in wording.power("reward", {**entry, "difference": 1e-9})
