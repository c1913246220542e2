"""Majority votes: maj@k against the enumeration of all subsets, and how rewards read and compare answers."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import ClassVar

import pytest

import burnish
from burnish.errors import ContractError, InputError
from burnish.evaluation.held_out import compare, summary
from burnish.evaluation.majority import majority_accuracy
from burnish.evaluation.measurement import Measurement
from burnish.recipe.schema import load_recipe
from burnish.rewards.registry import REWARDS
from tests.evaluation.test_held_out import measured


def enumerated(groups, silent, k):
    """The mean over all subsets of k samples and all equally common answers, each sample with its own verdict."""
    samples = [(name, place < right) for name, (size, right) in enumerate(groups) for place in range(size)]
    shares = [right / size for size, right in groups]
    samples += [(None, False)] * silent
    total = 0.0
    for subset in combinations(samples, k):
        names = [name for name, _ in subset if name is not None]
        most = max(map(names.count, names), default=0)
        winners = [name for name in set(names) if names.count(name) == most]
        total += sum(shares[name] for name in winners) / len(winners) if winners else 0.0
    return total / comb(len(samples), k)


class TestAccuracy:
    @pytest.mark.parametrize(
        ("groups", "silent"),
        [
            ([(3, 3), (2, 0), (1, 0)], 0),
            ([(2, 2), (2, 0), (2, 0)], 2),
            ([(1, 0), (1, 1), (4, 0)], 1),
            ([(4, 1), (3, 3)], 0),  # the reward judges equal answers differently
            ([(1, 1)] * 3 + [(1, 0)] * 4, 0),
            ([], 4),
        ],
    )
    def test_equals_enumeration(self, groups, silent):
        n = sum(size for size, _ in groups) + silent
        for k in range(1, n + 1):
            expected = enumerated(groups, silent, k)
            assert majority_accuracy(tuple(groups), silent, k) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(
        ("groups", "silent", "k", "expected"),
        [
            # Of AAAB, three subsets of three are AAB and one AAA. Of two samples AA are 3 of 6, the others tie.
            (((3, 3), (1, 0)), 0, 3, 1.0),
            (((3, 3), (1, 0)), 0, 2, 1 / 2 + 1 / 4),
            (((2, 2), (2, 0)), 0, 4, 1 / 2),  # all four: A and B tie
            (((2, 2), (5, 0)), 3, 1, 2 / 10),  # one sample is avg@n
            # Three of 2000 samples, 1200 of which are right: all three, or two and a wrong one.
            (((1200, 1200), (800, 0)), 0, 3, (comb(1200, 3) + comb(1200, 2) * 800) / comb(2000, 3)),
        ],
    )
    def test_by_hand(self, groups, silent, k, expected):
        assert majority_accuracy(groups, silent, k) == pytest.approx(expected, rel=1e-9)


def votes(name, texts, **options):
    return REWARDS.get(name).answer_reading(options).votes(texts)


class TestReadings:
    def test_numbers_are_equal_in_any_spelling(self):
        texts = ["It is 0.5", "so 1/2", "50%", "it is 3", "none", "3.0"]
        assert votes("numeric", texts) == [0, 0, 0, 3, None, 3]
        assert votes("numeric", ["10", "10.4", "11"], tolerance=0.05) == [0, 0, 2]

    def test_letters_and_expressions(self):
        assert votes("choice", ["(B)", "The answer is B", "C", "A or B"]) == [0, 0, 2, None]
        assert votes("math", [r"\boxed{\frac{1}{2}}", r"thus \boxed{0.5}", r"\boxed{paris}", "no box"]) == [
            0,
            0,
            2,
            None,
        ]

    def test_texts_are_equal_as_they_are_read(self):
        assert votes("exact", ["Paris", " Paris\n", "paris", " "]) == [0, 0, 2, None]
        assert votes("exact", ["x\nParis", "Paris"], answer="last_line") == [0, 0]
        assert votes("verifier", ["I say 4", "no, 4", "5"]) == [0, 0, 2]

    def test_an_own_reward_declares_its_answer(self):
        @burnish.reward(name="own_votes", read_answer=str.lower)
        def own_votes(text: str) -> float:
            return float(text.lower() == "x")

        assert votes("own_votes", ["x", "X", "y"]) == [0, 0, 2]

        @burnish.reward(name="odd_votes", read_answer=lambda text: text[3])
        def odd_votes(text: str) -> float:
            return 0.0

        with pytest.raises(ContractError, match="'odd_votes' cannot read an answer: IndexError"):
            votes("odd_votes", ["x"])


class TestMeasurement:
    ANSWERS: ClassVar = {
        "a": ["sat down", "x", "sat down", "y"],
        "b": ["no", "no", "all day", "all day"],
        "c": ["no"] * 4,
    }

    def measured(self, answers=ANSWERS):
        reading = REWARDS.get("exact").answer_reading({})
        return measured(answers, samples=4, correct="exact", majorities=[1, 4], reading=reading)

    def test_all_four_samples_vote(self):
        result = summary(Measurement.from_json(self.measured().to_json()))
        assert result["maj@4"] == pytest.approx((1 + 1 / 2 + 0) / 3)
        assert result["maj@1"] == pytest.approx(result["avg@4"]) == pytest.approx(4 / 12)

    def test_before_and_after_are_paired_by_prompt(self):
        after = self.measured({**self.ANSWERS, "c": ["knew why", "knew why", "no", "new"]})
        row = compare(self.measured(), after)["maj@4"]
        assert (row["difference"], row["n"], row["better"]) == (pytest.approx(1 / 3), 3, "higher")
        assert row["interval"][0] <= row["difference"] <= row["interval"][1] and 0 < row["p_value"] <= 1
        same = compare(self.measured(), self.measured())["maj@4"]
        assert (same["interval"], same["p_value"]) == ([0.0, 0.0], 1.0)


class TestRecipe:
    KEYS = ("evaluation.samples_per_prompt=4", "evaluation.maj_at=[4]")

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ([], "maj_at needs correct"),
            (["evaluation.correct=exact", "evaluation.maj_at=[8]"], "maj_at: k = 8 needs"),
            (["evaluation.correct=exact", "evaluation.maj_at=[2,2]"], r"maj_at = \[2, 2\]: name each k once"),
            (["evaluation.correct=exact", "evaluation.pass_at=[1,4,1]"], "pass_at = .* name each k once"),
            (
                ["reward.0.use=chrf", "evaluation.correct=chrf"],
                "'chrf' does not declare .* pass read_answer to @burnish",
            ),
        ],
    )
    def test_impossible_keys_are_refused(self, keys, message):
        with pytest.raises(InputError, match=message):
            load_recipe("toy", [*self.KEYS, *keys])

    def test_a_metric_may_read_the_answers(self):
        recipe = load_recipe("toy", [*self.KEYS, "evaluation.metrics=['numeric']", "evaluation.correct=numeric"])
        assert recipe.evaluation.maj_at == [4]
