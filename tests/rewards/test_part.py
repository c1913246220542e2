"""Values that reward functions return: numbers of every kind, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from burnish.errors import BurnishError, InputError
from burnish.rewards.combine import Combination, combine
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS, reward_function
from tests.rewards.completions import answer


@pytest.mark.parametrize(
    "value",
    [True, np.float32(1.0), np.int64(1), np.bool_(True), torch.tensor(1.0), torch.tensor([1.0])[0], np.array(1)],
)
def test_every_kind_of_one_is_one(value) -> None:
    part = Part("mine", reward_function("mine", lambda text: value))
    assert Combination([part]).score([answer()]).total.tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"'mine' returned nan \(float\) for prompt 'p9': a reward must be finite"),
        (-math.inf, r"returned -inf \(float\) for prompt 'p9'"),
        (np.float32("nan"), r"for prompt 'p9': a reward must be finite"),
        ("1.0", r"returned '1.0' \(str\) for prompt 'p9': a reward must be one number"),
        (1j, r"returned 1j \(complex\) for prompt 'p9'"),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_what_is_no_finite_number_is_named(value, message, batch) -> None:
    function = (lambda texts: [1.0, value]) if batch else (lambda text: value if text == "bad" else 1.0)
    with pytest.raises(BurnishError, match=message):
        Combination([Part("mine", reward_function("mine", function))]).score([answer(), answer("bad", id="p9")])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "'mine' returned 1 values for 2 completions"),
        ([], "returned 0 values for 2 completions"),
        (1.0, r"'mine' returned 1.0 \(float\): a batch reward must return a list"),
        (None, r"returned None \(NoneType\): a batch reward must return a list"),
        ("ab", r"returned 'ab' \(str\): a batch reward must return a list"),
        ({"a": 1, "b": 2}, r"\(dict\): a batch reward must return a list"),
    ],
)
def test_a_batch_reward_returns_a_list_of_the_right_length(returned, message) -> None:
    with pytest.raises(BurnishError, match=message):
        Combination([Part("mine", reward_function("mine", lambda texts: returned))]).score([answer(), answer()])


def test_a_reward_that_raises_is_named_with_its_prompt() -> None:
    def mine(text: str) -> float:
        return 1 / len(text)

    line = mine.__code__.co_firstlineno + 1
    message = (
        rf"^reward 'mine' raised ZeroDivisionError: .* \(.*test_part.py, line {line}\) on prompt 'p9', sample 1 "
        r"\('What now\?' -> ''\)$"
    )
    with pytest.raises(BurnishError, match=message) as caught:
        combine({mine: 1.0}).score([answer("a"), answer("", "", "What now?", id="p9")])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(BurnishError, match=r"on prompt 'p9' \(line 7 of the data\), sample 1 "):
        combine({mine: 1.0}).score([answer("", "", "What now?", id="p9", position="line 7")])
    with pytest.raises(
        BurnishError, match=r"returned 'x' \(str\) for prompt 'p' \(line 7 of the data\): a reward must"
    ):
        combine({lambda text: text: 1.0}).score([answer("x", position="line 7")])

    def all_at_once(texts: list[str]) -> list[float]:
        if "" in texts:
            raise ValueError("broken")
        return [0.0] * len(texts)

    with pytest.raises(BurnishError, match=r"raised ValueError: broken \(.*test_part.py, line \d+\) on prompt 'p9'"):
        combine({all_at_once: 1.0}).score([answer("a"), answer("", id="p9")])


def test_an_error_of_burnish_passes_as_it_is() -> None:
    with pytest.raises(InputError, match="prompt 'p' has none"):
        combine({"bleu": 1.0}).score([answer(reference=None)])


def test_an_unknown_option_is_refused_before_scoring() -> None:
    with pytest.raises(InputError, match=r"no option 'tokenise'.*did you mean 'tokenize'"):
        Combination([Part("bleu", REWARDS.get("bleu"), 1.0, {"tokenise": "zh"})])
