"""Paired tests: small cases by hand, and coverage and error rates on simulated data whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from burnish.errors import InputError
from burnish.evaluation.statistics import (
    compare_corpus,
    compare_distinct,
    corpus_score,
    paired_bootstrap,
    perplexity_of_units,
    resample_counts,
    small_sample_factor,
)


def bigrams(text: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(text))


# By hand ------------------------------------------------------------------------------------------------------------


def test_resamples_draw_as_many_units_as_there_are() -> None:
    counts = resample_counts(7, 500, seed=3)
    assert counts.shape == (500, 7)
    assert (counts.sum(axis=1) == 7).all() and (counts >= 0).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    assert (counts == resample_counts(7, 500, seed=3)).all()
    assert (counts != resample_counts(7, 500, seed=4)).any()


def test_two_units_by_hand() -> None:
    # Differences 1 and 3: a resample's mean is 1, 2 or 3 with probability 1/4, 1/2, 1/4, and never 0 or less. But two
    # units prove nothing: stretched by the factor for two units, the interval reaches below zero.
    result = paired_bootstrap([5.0, 5.0], [6.0, 8.0], resamples=999)
    assert (result.before, result.after, result.difference, result.n) == (5.0, 7.0, 2.0, 2)
    factor = small_sample_factor(2)
    assert factor == pytest.approx(2**0.5 * 12.7062 / 1.95996, abs=1e-4)
    assert result.interval == pytest.approx((2 - factor, 2 + factor))
    assert result.p_value == pytest.approx(2 * 0.25, abs=0.08)


@pytest.mark.parametrize(
    ("n", "t"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (6, 2.5706), (11, 2.2281), (40, 2.0227), (121, 1.9799)]
)
def test_small_sample_factor_against_the_table_of_t(n: int, t: float) -> None:
    assert small_sample_factor(n) / math.sqrt(n / (n - 1)) * 1.95996 == pytest.approx(t, abs=1e-4)


def test_p_value_by_hand() -> None:
    # Four differences with mean 1: count over the same resamples, stretched about 1.
    differences = np.array([-2.0, 1.0, 2.0, 3.0])
    result = paired_bootstrap(np.zeros(4), differences, resamples=999, seed=5)
    means = 1 + (resample_counts(4, 999, seed=5) @ differences / 4 - 1) * small_sample_factor(4)
    assert result.p_value == 2 * (1 + (means <= 0).sum()) / 1000
    assert result.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_ratios_weigh_units_by_their_denominators() -> None:
    # Before: an NLL of 2 over 1 token and of 3 over 4 tokens, so exp(5 / 5). After: exp(0).
    before, after = np.array([[2.0, 1.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [0.0, 4.0]])
    result = paired_bootstrap(before, after, statistic=perplexity_of_units)
    assert (result.before, result.after) == (pytest.approx(math.e), 1.0)
    # A resample holds only the first unit (e^2), both (e), or only the second (e^(3/4)), stretched about 1 - e.
    ends = [1 - math.e + (math.e - end) * small_sample_factor(2) for end in (math.exp(2), math.exp(0.75))]
    assert result.interval == pytest.approx(tuple(ends))


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.7], [0.0, 0.0], [1e300, -3.0]])
def test_equal_samples_differ_by_exactly_zero(values: list[float]) -> None:
    result = paired_bootstrap(values, values)
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)
    grams = [bigrams("abcab"), bigrams("bcd"), []]
    result = compare_distinct(grams, grams)
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)
    sums = np.array(BLEU()._extract_corpus_statistics(["a b c d e", "x"], [["a b c d f", "y"]]), dtype=float)
    result = compare_corpus(BLEU(), sums, sums)
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_swapping_before_and_after_flips_the_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=20), rng.normal(size=20)
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert forth.difference == -back.difference and forth.p_value == back.p_value
    assert forth.interval == pytest.approx((-back.interval[1], -back.interval[0]))


def test_too_little_or_unequal_data_is_refused() -> None:
    for few in ([], [1.0]):
        with pytest.raises(InputError, match=f"at least two held-out prompts .* not {len(few)}"):
            paired_bootstrap(few, few)
        with pytest.raises(InputError, match="at least two"):
            compare_distinct([["x"]] * len(few), [["x"]] * len(few))
    with pytest.raises(InputError, match="same units"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="same units"):
        compare_distinct([["x"], ["y"]], [["x"]])


def test_distinct_by_hand() -> None:
    # Before: ab bc | ab | cd, 3 distinct of 4. After: ab bc | ab | ab, 2 of 4.
    before, after = [bigrams("abc"), bigrams("ab"), bigrams("cd")], [bigrams("abc"), bigrams("ab"), bigrams("ab")]
    result = compare_distinct(before, after, resamples=999, seed=2)
    assert (result.before, result.after, result.difference, result.n) == (0.75, 0.5, -0.25, 3)
    # Leaving out one unit each: before 2/2, 3/3, 2/3 and after 1/2, 2/3, 2/3. Differences -1/2, -1/3, 0, mean -5/18.
    # Influences, 2 (mean - difference): 4/9, 1/9, -5/9.
    deviations = resample_counts(3, 999, seed=2) @ np.array([4 / 9, 1 / 9, -5 / 9]) / 3
    resampled = -0.25 + deviations * small_sample_factor(3)
    assert result.interval == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])))
    assert result.p_value == 2 * (1 + (resampled >= 0).sum()) / 1000


def test_distinct_of_empty_texts() -> None:
    result = compare_distinct([bigrams("abc"), bigrams("cd")], [[], []])
    assert (result.before, result.after, result.difference) == (1.0, 0.0, -1.0)


# sacrebleu ----------------------------------------------------------------------------------------------------------

REFERENCES = ["the cat sat on a mat", "a dog ran over the old bridge", "he read the book at night", "it rained"] * 4
WORSE = ["the cat is on a mat today", "a dog ran in the old house", "he saw the book at noon", "it snowed"] * 4
BETTER = ["the cat sat on the mat now", "a dog ran over the bridge", "he read the book at noon", "it rained a bit"] * 4


@pytest.mark.parametrize("metric", [BLEU(), CHRF()], ids=["bleu", "chrf"])
def test_one_sample_per_prompt_equals_sacrebleus_own_test(metric) -> None:
    rows = [np.array(metric._extract_corpus_statistics(t, [REFERENCES]), dtype=float) for t in (WORSE, BETTER)]
    result = compare_corpus(metric, *rows, resamples=300, seed=11)
    assert result.before == pytest.approx(metric.corpus_score(WORSE, [REFERENCES]).score)
    assert result.after == pytest.approx(metric.corpus_score(BETTER, [REFERENCES]).score)
    test = PairedTest([("a", WORSE), ("b", BETTER)], {"m": metric}, [REFERENCES], test_type="ar", n_samples=300)
    theirs = next(values for name, values in test()[1].items() if name != "System")[1].p_value
    assert result.p_value == pytest.approx(theirs, abs=0.02)  # both are estimates from 300 swaps
    assert 0 < result.interval[0] < result.difference < result.interval[1]


def test_three_units_cannot_be_significant() -> None:
    metric = BLEU()
    rows = [np.array(metric._extract_corpus_statistics(t[:3], [REFERENCES[:3]]), dtype=float) for t in (WORSE, BETTER)]
    assert compare_corpus(metric, *rows).p_value >= 0.25


def test_the_seed_decides_the_result() -> None:
    metric = CHRF()
    rows = [np.array(metric._extract_corpus_statistics(t, [REFERENCES]), dtype=float) for t in (WORSE, BETTER)]
    rows[1][3:] = rows[0][:-3]
    results = [compare_corpus(metric, *rows, resamples=200, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0].interval != results[2].interval


def test_scores_of_zero_are_not_significant() -> None:
    # No 4-gram matches before or after, although the texts differ: every swap is a tie.
    metric = BLEU(smooth_method="none")
    texts = [["a b c d e"] * 20, ["the cat sat under a mat"] * 20]
    rows = [
        np.array(metric._extract_corpus_statistics(each, [REFERENCES + REFERENCES[:4]]), dtype=float) for each in texts
    ]
    result = compare_corpus(metric, *rows, resamples=200)
    assert (result.before, result.after, result.p_value) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("changed", "least"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_few_changed_texts_among_many_are_not_significant(changed: int, least: float) -> None:
    # 2^(1 - m): of all swaps of the m changed texts, only two give a difference as large as the observed one, namely
    # swapping all and swapping none.
    metric = BLEU()
    references = [f"the cat {number} sat on the mat" for number in range(87)]
    texts = [f"the cat {number} lay on a mat" for number in range(87)]
    better = [*references[:changed], *texts[changed:]]
    rows = [np.array(metric._extract_corpus_statistics(each, [references]), dtype=float) for each in (texts, better)]
    result = compare_corpus(metric, *rows, resamples=200)
    assert result.difference > 0 and result.p_value >= least


def test_corpus_score_does_not_modify_its_argument() -> None:
    metric = BLEU()
    sums = np.array(metric._extract_corpus_statistics(WORSE, [REFERENCES]), dtype=float).sum(axis=0)
    kept = sums.copy()
    assert corpus_score(metric, sums) == corpus_score(metric, sums)
    assert (sums == kept).all()


# Simulated data -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_interval_covers_the_true_difference() -> None:
    # 40 prompts, skewed noise, true difference 0.3. A rate over 1000 trials has a standard error of 0.7 %; the bounds
    # are three of those away.
    rng = np.random.default_rng(0)
    trials, covered, rejected = 1000, 0, 0
    for trial in range(trials):
        hardness = rng.normal(size=40) * 5
        before, after = hardness + rng.exponential(size=40), hardness + rng.exponential(size=40)
        result = paired_bootstrap(before, after + 0.3, resamples=400, seed=trial)
        covered += result.interval[0] <= 0.3 <= result.interval[1]
        rejected += paired_bootstrap(before, after, resamples=400, seed=trial).p_value < 0.05
    assert 0.929 < covered / trials < 0.971
    assert 0.029 < rejected / trials < 0.071


def test_samples_of_one_prompt_are_not_independent_evidence() -> None:
    # No true difference, but each prompt's 8 samples share a random offset. Tested per prompt, the error rate is as
    # promised; tested as independent samples (the negative control), it is far too high.
    rng = np.random.default_rng(1)
    trials, by_prompt, by_sample = 300, 0, 0
    for trial in range(trials):
        luck = rng.normal(size=(30, 1))
        before, after = rng.normal(size=(30, 8)) * 0.5, rng.normal(size=(30, 8)) * 0.5 + luck
        sums = [np.stack([values.sum(axis=1), np.full(30, 8.0)], axis=-1) for values in (before, after)]
        by_prompt += paired_bootstrap(*sums, resamples=200, seed=trial).p_value < 0.05
        by_sample += paired_bootstrap(before.ravel(), after.ravel(), resamples=200, seed=trial).p_value < 0.05
    assert by_prompt / trials < 0.08
    assert by_sample / trials > 0.25


def zipf_corpus(rng: np.random.Generator, vocabulary: int) -> list[list[tuple[int, int]]]:
    """Return the bigrams of 40 units of 30 words, where a word's probability is proportional to 1 / rank."""
    weights = 1 / np.arange(1, vocabulary + 1)
    drawn = rng.choice(vocabulary, p=weights / weights.sum(), size=(40, 30)).tolist()
    return [list(itertools.pairwise(row)) for row in drawn]


@pytest.mark.slow
def test_distinct_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(2)

    def distinct(corpus: list[list[tuple[int, int]]]) -> float:
        return len({gram for unit in corpus for gram in unit}) / (40 * 29)

    truth = np.mean([distinct(zipf_corpus(rng, 200)) - distinct(zipf_corpus(rng, 300)) for _ in range(300)])
    trials, covered, rejected = 250, 0, 0
    for trial in range(trials):
        rich, poor = zipf_corpus(rng, 300), zipf_corpus(rng, 200)
        low, high = compare_distinct(rich, poor, resamples=200, seed=trial).interval
        covered += low <= truth <= high
        rejected += compare_distinct(rich, zipf_corpus(rng, 300), resamples=200, seed=trial).p_value < 0.05
    assert covered / trials > 0.91
    assert rejected / trials < 0.08
