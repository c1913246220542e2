"""Guards: alarms are raised if a reward is gamed, and only then."""

from __future__ import annotations

import math
import random

import pytest

from burnish.errors import InputError
from burnish.evaluation.guards import (
    TrendRows,
    TrueTexts,
    diversity_alarm,
    evaluation_alarms,
    guard_alarms,
    length_alarm,
    part_alarm,
    same_answer_alarm,
    text_diversity,
    trends,
)
from burnish.evaluation.measurement import Measurement, Sample, Truth
from burnish.recipe.reading import builtin_recipes
from burnish.recipe.schema import Recipe, load_recipe
from burnish.types import Prompt


def rows(rewards: list[float], diversity: list[float]) -> list[dict[str, float]]:
    return [
        {"step": step, "reward/mean": r, "diversity/distinct_2": d}
        for step, (r, d) in enumerate(zip(rewards, diversity, strict=True))
    ]


def test_text_diversity_by_hand() -> None:
    # Words a b a | a b: 2 of 5 are distinct. Bigrams ab ba ab: 2 of 3. Longest repeats: 1 of 2 and 0 of 1.
    assert text_diversity(["a b a", "A b"]) == pytest.approx(
        {"diversity/distinct_1": 2 / 5, "diversity/distinct_2": 2 / 3, "diversity/longest_repeat": 0.25}
    )
    # In Chinese each character counts as a word: 我 我 爱.
    assert text_diversity(["我我爱"])["diversity/distinct_1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("texts", [[], [""], ["", " "]])
def test_empty_texts_have_a_diversity_of_zero(texts: list[str]) -> None:
    assert set(text_diversity(texts).values()) == {0.0}


def test_alarm_when_reward_rises_while_diversity_collapses() -> None:
    message = diversity_alarm(rows([0.1, 0.1, 0.1, 0.9, 0.9], [1.0, 1.0, 0.9, 0.5, 0.5]), drop=0.1, window=2)
    assert message is not None
    assert "rose from 0.1 to 0.9" in message and "from 1.000 to 0.500 (-50%)" in message


@pytest.mark.parametrize(
    ("rewards", "diversity", "reason"),
    [
        ([0.1, 0.1, 0.9, 0.9], [1.0, 1.0, 0.92, 0.92], "diversity fell by less than the drop"),
        ([0.9, 0.9, 0.1, 0.1], [1.0, 1.0, 0.5, 0.5], "the reward fell"),
        ([0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5], "the reward did not change"),
        # Window means 0.5 and 0.6; variances 0.5 and 0.5; 2 sqrt((0.5 + 0.5) / 2) = 1.41.
        ([0.0, 1.0, 0.1, 1.1], [1.0, 1.0, 0.5, 0.5], "the rise is within the noise"),
        ([0.1, 0.9, 0.9], [1.0, 0.5, 0.5], "the windows would overlap"),
        ([0.1, 0.1, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0], "there was no diversity to lose"),
    ],
)
def test_no_alarm(rewards: list[float], diversity: list[float], reason: str) -> None:
    assert diversity_alarm(rows(rewards, diversity), drop=0.1, window=2) is None, reason


def test_rows_without_the_keys_are_skipped() -> None:
    history = [{"step": 0.0}, *rows([0.0, 1.0], [1.0, 0.1]), {"held_out/reward": 1.0}]
    assert diversity_alarm(history, drop=0.1, window=1) is not None
    assert diversity_alarm([], drop=0.1, window=1) is None
    assert diversity_alarm(history, drop=0.1, window=0) is None


@pytest.mark.slow
def test_noise_alone_rarely_raises_an_alarm() -> None:
    # The reward is noise and diversity has collapsed, so only a chance rise raises an alarm. Two standard errors,
    # one-sided, with windows of five steps (8 degrees of freedom): about 4 %.
    rng = random.Random(0)
    diversity = [1.0] * 5 + [0.5] * 5
    alarms = sum(
        diversity_alarm(rows([rng.gauss(0, 1) for _ in range(10)], diversity), drop=0.1, window=5) is not None
        for _ in range(2000)
    )
    assert 0.02 < alarms / 2000 < 0.06


def metric(before: float, after: float, low: float, high: float) -> dict[str, object]:
    return {"before": before, "after": after, "difference": after - before, "interval": [low, high], "p_value": 0.01}


GOOD = {
    "reward": metric(0.1, 0.5, 0.3, 0.5),
    "distinct_2": metric(0.9, 0.85, -0.06, -0.04),
    "bleu": metric(1.0, 1.5, -0.1, 1.1),
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"distinct_2": metric(0.9, 0.8, -0.2, 0.0)}, ["distinct-2 fell from 0.900 to 0.800 (-11%)"]),
        ({"distinct_2": metric(0.9, 0.5, -0.5, -0.3), "reward": metric(0.1, 0.5, -0.1, 0.9)}, []),
        ({"bleu": metric(1.5, 1.0, -0.9, -0.1)}, ["BLEU fell from 1.50 to 1.00"]),
        ({"bleu": metric(1.5, 1.0, -0.9, 0.1)}, []),
        (
            {"bleu": metric(1.5, 1.0, -0.9, -0.1), "distinct_2": metric(0.9, 0.5, -0.5, -0.3)},
            ["distinct-2 fell from 0.900 to 0.500 (-44%)", "BLEU fell"],
        ),
    ],
)
def test_evaluation_alarms(change, expected: list[str]) -> None:
    alarms = evaluation_alarms(GOOD | change)
    assert len(alarms) == len(expected)
    assert all(part in alarm for part, alarm in zip(expected, alarms, strict=True))


def test_evaluation_alarms_skip_missing_metrics() -> None:
    assert evaluation_alarms({}) == []
    assert evaluation_alarms({"reward": GOOD["reward"]}) == []


def series(key: str, rewards: list[float], values: list[float]) -> list[dict[str, float]]:
    return [{"reward/mean": r, key: v} for r, v in zip(rewards, values, strict=True)]


@pytest.mark.parametrize(
    ("rewards", "lengths", "drift", "rings"),
    [
        ([0, 0, 1, 1], [10, 10, 16, 16], 0.5, True),
        # Shrinking counts like growing: 16 is 1.6 times 10 in both directions.
        ([0, 0, 1, 1], [16, 16, 10, 10], 0.5, True),
        ([0, 0, 1, 1], [10, 10, 15, 15], 0.5, False),
        ([0, 0, 1, 1], [10, 10, 99, 99], 0.0, False),
        ([1, 1, 0, 0], [10, 10, 99, 99], 0.5, False),
        # 10.5 to 16.5, but the lengths in the windows are 9 and 15 apart: the error is sqrt((40.5 + 112.5) / 2) = 8.7.
        ([0, 0, 1, 1], [6, 15, 9, 24], 0.5, False),
        ([0, 1, 1], [10, 16, 16], 0.5, False),
    ],
)
def test_length_drift(rewards, lengths, drift, rings) -> None:
    found = length_alarm(series("length/mean", rewards, lengths), drift=drift, window=2)
    assert bool(found) == rings
    assert not found or "mean length went from" in found


@pytest.mark.parametrize(
    ("rewards", "values", "drop", "rings"),
    [
        ([0, 0, 1, 1], [0.5, 0.5, 0.4, 0.4], 0.0, True),
        ([0, 0, 1, 1], [0.5, 0.5, 0.4, 0.4], 0.25, False),
        # The drop is a share of the absolute value: a fifth of |-0.5| is 0.1.
        ([0, 0, 1, 1], [-0.5, -0.5, -0.7, -0.7], 0.2, True),
        ([0, 0, 1, 1], [0.4, 0.4, 0.5, 0.5], 0.0, False),
        ([0, 0, 1, 1], [0.2, 0.8, 0.1, 0.7], 0.0, False),
        ([1, 1, 0, 0], [0.5, 0.5, 0.4, 0.4], 0.0, False),
    ],
)
def test_a_reward_of_weight_0_that_falls(rewards, values, drop, rings) -> None:
    found = part_alarm(series("reward/keywords", rewards, values), "keywords", drop=drop, window=2)
    assert bool(found) == rings
    assert not found or "'keywords', which is not trained on, fell from" in found


def guard(before: float, after: float, low: float, high: float, better: str = "higher") -> dict[str, object]:
    return {**metric(before, after, low, high), "better": better}


@pytest.mark.parametrize(
    ("entry", "drop", "rings"),
    [
        (guard(0.5, 0.4, -0.15, -0.05), 0.0, True),
        (guard(0.5, 0.4, -0.15, -0.05), 0.2, False),
        (guard(0.5, 0.4, -0.25, 0.05), 0.0, False),
        (guard(0.4, 0.5, 0.05, 0.15), 0.0, False),
        (guard(0.4, 0.5, 0.05, 0.15, "lower"), 0.0, True),
        (guard(0.5, 0.4, -0.15, -0.05, "lower"), 0.0, False),
    ],
)
def test_a_held_out_guard_that_gets_worse(entry, drop, rings) -> None:
    evaluation = {"reward": GOOD["reward"], "metric/x": entry}
    assert list(guard_alarms(evaluation, guards=["metric/x"], metric_drop=drop)) == ["metric/x"] * rings
    assert guard_alarms(evaluation, metric_drop=drop) == {}, "not watched"
    # A reward that did not clearly rise was not gamed.
    unclear = {**evaluation, "reward": metric(0.1, 0.5, -0.1, 0.9)}
    assert guard_alarms(unclear, guards=["metric/x"], metric_drop=drop) == {}


def test_a_held_out_length_that_drifts() -> None:
    evaluation = {"reward": GOOD["reward"], "length": metric(10.0, 30.0, 15.0, 25.0)}
    assert list(guard_alarms(evaluation, length_drift=0.5)) == ["length"]
    assert guard_alarms(evaluation, length_drift=2.0) == guard_alarms(evaluation) == {}


@pytest.mark.parametrize(
    ("before", "after", "length", "rings"),
    [
        (16, 4, 3.0, False),
        (16, 4, 6.0, False),
        (16, 4, 6.1, True),
        # Longer answers are the oldest way to game a reward, and the true ones may be long.
        (4, 16, 16.0, True),
        (16, 4, math.inf, True),
    ],
)
def test_texts_as_short_as_the_true_answers(before, after, length, rings) -> None:
    truth = TrueTexts(length=length)
    history = series("length/mean", [0, 0, 1, 1], [before, before, after, after])
    assert bool(length_alarm(history, drift=0.5, window=2, truth=truth)) == rings
    sign = 1 if after > before else -1
    evaluation = {"reward": GOOD["reward"], "length": metric(before, after, *sorted((sign, 12 * sign)))}
    assert bool(guard_alarms(evaluation, length_drift=0.5, truth=truth)) == rings


@pytest.mark.parametrize(
    ("length", "true_length", "distinct_2", "rings"),
    [
        (3.0, 2.0, 0.0, False),
        (3.0, 2.0, 0.4, False),
        (3.0, 2.0, 0.6, True),
        # One-word answers have no pairs of words: they do not excuse a chain of thought that repeats itself.
        (40.0, 2.0, 0.0, True),
        (3.0, math.inf, math.inf, True),
    ],
)
def test_texts_as_like_one_another_as_the_true_answers(length, true_length, distinct_2, rings) -> None:
    truth = TrueTexts(true_length, distinct_2)
    history = [row | {"length/mean": length} for row in rows([0.1, 0.9], [1.0, 0.5])]
    assert bool(diversity_alarm(history, drop=0.1, window=1, truth=truth, drift=0.5)) == rings
    evaluation = {"reward": GOOD["reward"], "distinct_2": metric(1.0, 0.5, -0.6, -0.4)}
    evaluation["length"] = metric(length, length, -1.0, 1.0)
    assert bool(guard_alarms(evaluation, truth=truth, length_drift=0.5)) == rings


def test_the_true_answers_of_a_measurement() -> None:
    prompts = [Prompt("a", "?", reference="a b c"), Prompt("b", "?", reference="a b")]
    truths = (Truth("a", 1.0, 5), Truth("b", 1.0, 3))
    measured = Measurement(samples=(), truths=truths, weights={})
    assert TrueTexts.of(prompts, measured) == TrueTexts(4.0, 2 / 3)
    assert TrueTexts.of([*prompts, Prompt("c", "?")], measured) == TrueTexts()


def answers(texts: str, references: str) -> Measurement:
    samples = [
        Sample(str(index), "?", reference, 0, text, 0.0, {}, 1, "stop", 0.0, {})
        for index, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]
    return Measurement(samples=tuple(samples), truths=(), weights={})


@pytest.mark.parametrize(
    ("texts", "references", "rings"),
    [
        ("aaaaaaab", "abcdabcd", True),
        ("aaaabbcd", "abcdabcd", False),  # half
        ("aaaaaaab", "aaaaaabc", False),  # as often as it is true
        ("aaaaaaaa", "aaaaaaaa", False),  # there is one answer
        (" " * 8, "abcdabcd", True),
    ],
)
def test_one_answer_to_all_questions(texts: str, references: str, rings: bool) -> None:
    found = same_answer_alarm(answers(texts, references))
    assert bool(found) == rings
    assert not found or "true answer, 'a', belongs to 25% of the prompts" in found


def toy(**sections: object) -> Recipe:
    rewards = [{"use": "exact"}, {"use": "repetition", "weight": 0.0}]
    return load_recipe(
        {"name": "x", "task": {"use": "toy"}, "policy": {"use": "tabular"}, "reward": rewards, **sections}
    )


METRICS = {"metrics": ["chrf", {"use": "compression", "better": "neither"}], "every": 5}


def test_guarded_metrics() -> None:
    assert toy().guarded == ("reward/repetition",)  # the measured reward of weight 0
    assert toy(evaluation=METRICS).guarded == ("metric/chrf", "reward/repetition")
    assert toy(evaluation=METRICS, guards={"metrics": []}).guarded == ()
    named = toy(evaluation={}, guards={"metrics": ["repetition", "bleu", "chrf"]})
    assert named.guarded == ("reward/repetition", "bleu", "chrf")
    assert toy(evaluation=METRICS, guards={"metrics": ["chrf"], "stop": True}).guarded == ("metric/chrf",)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"guards": {"stop": True}}, "set evaluation.every"),
        ({"guards": {"metrics": ["exact"]}}, "trained on 'exact'"),
        ({"guards": {"metrics": ["chrff"]}}, "'chrff' is not measured .did you mean 'chrf'"),
        ({"evaluation": METRICS, "guards": {"metrics": ["compression"]}}, "it cannot get worse"),
        ({"guards": {"length_drift": -1.0}}, "guards.length_drift"),
    ],
)
def test_guards_that_cannot_work_are_refused(sections, message: str) -> None:
    with pytest.raises(InputError, match=message):
        toy(**sections)


def test_every_builtin_recipe_guards_a_metric_that_it_does_not_train_on() -> None:
    """Except for the toy, whose reward says everything about an answer."""
    unwatched = {name for name in builtin_recipes() if not load_recipe(name).guarded}
    assert unwatched == {"toy"}


@pytest.mark.parametrize("count", [0, 1, 5, 6, 9, 40])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_few_rows_have_the_trends_of_all(count, window) -> None:
    """Rows without one of the keys are skipped; however many there are, two windows of rows are kept."""
    draws = random.Random(count)
    history = [{"reward": draws.random(), "part": draws.random()} for _ in range(count)]
    for row in history[::3]:
        del row["part"]
    kept = TrendRows(("reward", "part"), window)
    for row in history:
        kept.add(row)
    assert trends(kept.rows, ("reward", "part"), window) == trends(history, ("reward", "part"), window)
    assert len(kept.rows) <= 2 * window
