"""Rewards are asked about the references and about constant answers before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from burnish.backends.reference_check import check_answers
from burnish.errors import InputError
from burnish.rewards.registry import REWARDS, reward
from burnish.types import Prompt
from tests.fakes import RecordingObserver, toy_recipe


def prompts(*references: str) -> list[Prompt]:
    return [Prompt(f"p{index}", "Question", text, position=f"line {index}") for index, text in enumerate(references, 1)]


def check(reward: dict[str, Any], *references: str) -> list[str]:
    """Return the warnings."""
    observer = RecordingObserver()
    check_answers(toy_recipe(reward=[{"weight": 1.0, **reward}]), prompts(*references), observer)
    return observer.warnings


@pytest.mark.parametrize(
    ("reward", "references"),
    [
        ({"use": "numeric"}, ["12", "1,000", "3/4"]),
        ({"use": "numeric", "answer": "boxed"}, ["12", "7"]),
        ({"use": "exact", "answer": "tag"}, ["Paris", "Rome"]),
        ({"use": "exact"}, ["Paris", "Rome"]),
        ({"use": "choice"}, ["A", "B", "C", "D"]),
        ({"use": "bleu"}, ["", "anything"]),
    ],
)
def test_readable_references_are_silent(reward: dict[str, Any], references: list[str]) -> None:
    assert check(reward, *references) == []


@pytest.mark.parametrize(
    ("reward", "references", "message"),
    [
        (
            {"use": "exact", "answer": "last_number"}, ["olleh", "dlrow", "3"],
            r"reward\.0: 'exact' gives no credit to 2 of 3 references themselves \(line 1: 'olleh', line 2: 'dlrow'\); "
            r"choose another reading",
        ),
        ({"use": "numeric"}, ["1", "seven"], r"to 1 of 2 references .*line 2: 'seven'.*a reference that is one number"),
        ({"use": "choice"}, ["Paris", "Rome"], r"'choice' gives no credit to 2 of 2 references"),
    ],
)  # fmt: skip
def test_a_reward_that_calls_references_wrong_is_refused(
    reward: dict[str, Any], references: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(reward, *references)


def test_few_wrong_references_among_many_are_a_warning() -> None:
    (text,) = check({"use": "numeric"}, *map(str, range(150)), "seven")
    assert text.endswith("gives no credit to 1 of 151 references themselves (line 151: 'seven'): mend these rows")


def test_the_commonest_answer_is_named() -> None:
    (text,) = check({"use": "numeric"}, *["1"] * 18, *map(str, range(2, 9)))
    assert text == (
        "reward.0: 'numeric': the answer '1' is right for 72% of the prompts, so a policy that always gives it has that "
        "accuracy"
    )
    assert check({"use": "numeric"}, *["1"] * 18) == [], "there is only one answer"
    assert check({"use": "numeric"}, *map(str, range(30))) == []


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    return reward(name="own", needs_reference=True, judges_answers=True)


async def later(text: str, reference: str) -> float:
    return float(text == reference)


def single_precision(text: str, reference: str) -> np.float32:
    return np.float32(text == reference)


def scored(text: str, reference: str) -> dict[str, float]:
    return {"score": float(text == reference)}


@pytest.mark.parametrize("function", [later, single_precision, scored])
def test_rewards_of_every_form_are_asked(own, function: Callable[..., Any]) -> None:
    own(function)
    assert check({"use": "own"}, "12", "7") == []


def test_a_reward_that_raises_says_why(own) -> None:
    own(lambda text, reference: 1 / 0)
    with pytest.raises(InputError, match=r"no credit to 1 of 1 references .*reward 'own' raised ZeroDivisionError"):
        check({"use": "own"}, "12")


def test_metrics_are_asked_too() -> None:
    recipe = toy_recipe(evaluation={"metrics": [{"use": "numeric"}]})
    with pytest.raises(InputError, match=r"evaluation\.metrics\.0: 'numeric' gives no credit to 1 of 1 references"):
        check_answers(recipe, prompts("seven"))
