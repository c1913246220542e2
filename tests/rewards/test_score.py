"""Scoring texts by a reward's name, from Python and from the command line."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.errors import InputError
from burnish.scoring import score


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


def test_the_best_of_several_references_counts() -> None:
    command = ["score", "Paris", "Rome", "--use", "exact", "--reference", "Lutetia", "--reference", "Paris"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and result.stdout == "exact 1  Paris\nexact 0  Rome\n"
    rows = score(["Paris", "Lutetia"], rewards="exact", reference=["Lutetia", "Paris"])
    assert [row["parts"] for row in rows] == [{"exact": 1.0}, {"exact": 1.0}]
    with pytest.raises(InputError, match="'exact' needs a reference"):
        score(["Paris"], rewards="exact", reference=["Paris", " "])


def test_a_chinese_text_from_the_command_line() -> None:
    command = ["score", "今天天气很好。", "--use", "readability", "--set", "readability.form=grade", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "6.0" in result.stdout


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
