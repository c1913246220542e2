"""Paired tests over the units of a held-out set: bootstrap intervals, p-values and randomization.

A unit is drawn independently of the others: a prompt, with all its samples. The functions work on sufficient
statistics, an array ``[n, k]`` of k sums per unit, and on a function that turns sums ``[..., k]`` into the metric
``[...]``. A resample is a row of ``counts [B, n]``, the number of times it drew each unit, so that the sums of all
resamples are one matrix product. This makes corpus metrics (ratios, BLEU, chrF) as cheap as means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from burnish.errors import InputError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Array: TypeAlias = "np.typing.NDArray[np.float64]"
Statistic: TypeAlias = Callable[[Array], Array]

LEVEL = 0.95
ROUNDING = 1e-9
"""Difference of two corpus scores, 0 to 100, that counts as none."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric over n units before and after.

    Attributes:
        difference: after - before.
        interval: 95% bootstrap percentile interval of the difference, widened for few units.
        p_value: two-sided, for the hypothesis of no difference; never 0 in a resampling test.
    """

    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    n: int


def mean_of_units(sums: Array) -> Array:
    """Return the ratio of the first sum to the second, [..., 2] -> [...]: a mean if the second is a count; 0 of none."""
    return np.asarray(sums[..., 0] / np.where(sums[..., 1] == 0, 1.0, sums[..., 1]))


def perplexity_of_units(sums: Array) -> Array:
    """Return corpus perplexity, exp(sum of NLL / number of tokens); [..., 2] -> [...]."""
    return np.exp(mean_of_units(sums))


def resample_counts(n: int, resamples: int, seed: int) -> Array:
    """Return how often each of n units occurs in each of ``resamples`` draws of n units with replacement; [B, n].

    The draws depend on n and the seed only, so that all metrics of a comparison see the same resamples.
    """
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    flat = draws + n * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def small_sample_factor(n: int) -> float:
    """Return the factor that stretches resampled deviations so that the 95% interval of n units holds its level.

    A plain percentile interval is too narrow for few units: it divides the variance by n instead of n - 1, and treats
    the variance as known. The factor is ``sqrt(n / (n - 1)) * t / z``, with the 97.5% quantiles of Student's t (n - 1
    degrees of freedom) and of the normal distribution: 9.17 for 2 units, 1.045 for 40, near 1 for many.

    Source: Hesterberg 2015, arXiv 1411.5279, section 5.2 (the same correction, by wider quantiles).
    """
    from scipy.special import ndtri, stdtrit

    upper = (1 + LEVEL) / 2
    return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, upper) / ndtri(upper))


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Return the 95% interval of a share from n independent trials; (0, 1) of none.

    Source: Wilson 1927, Journal of the American Statistical Association 22(158).
    """
    from scipy.special import ndtri

    if n == 0:
        return 0.0, 1.0
    z = float(ndtri((1 + LEVEL) / 2))
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_bootstrap(
    before: Array | Sequence[float],
    after: Array | Sequence[float],
    *,
    statistic: Statistic = mean_of_units,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare a metric on the same n units before and after by the paired bootstrap.

    Each resample draws whole units, the same ones before and after. The difficulty of a prompt then cancels, and the
    samples of one prompt are not treated as independent evidence.

    Deviations from the difference are stretched by ``small_sample_factor``; the interval lies between the 2.5% and
    97.5% quantiles. The p-value inverts it: ``2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (B + 1)``, at most 1, so that p <
    0.05 and an interval without zero agree (up to one resample). Adding one counts the data themselves as a resample.

    ``before`` and ``after`` are sums [n, k] per unit, or plain values [n] whose mean is the metric. If they are equal:
    difference 0, interval (0, 0) and p 1 exactly. Raises InputError if the shapes differ, or there are fewer than two
    units.

    Source: Efron and Tibshirani 1993, chapters 13 and 15; Koehn 2004 (pairing); Davison and Hinkley 1997, section 4.2
    (the added one).
    """
    first, second = _sums(before), _sums(after)
    if first.shape != second.shape:
        raise InputError(f"before has shape {first.shape} and after {second.shape}: a paired test needs the same units")
    counts = resample_counts(_at_least_two(len(first)), resamples, seed)
    value_before, value_after = float(statistic(first.sum(axis=0))), float(statistic(second.sum(axis=0)))
    differences = statistic(counts @ second) - statistic(counts @ first)
    return _comparison(value_before, value_after, differences, len(first))


def compare_distinct(
    before: Sequence[Sequence[Hashable]], after: Sequence[Sequence[Hashable]], *, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare corpus-level distinct-n, from the n-grams of each unit.

    Distinct-n cannot be resampled directly. A prompt drawn twice repeats all its n-grams, which would lower the metric;
    if it counted once, a resample would be a smaller corpus that varies too little (0.76 of the right width). Instead
    the difference is linearised: the influence of unit i is ``(n - 1) (mean of d(-j) - d(-i))``, with ``d(-i)`` the
    exact difference without unit i, and the mean influence is resampled, which duplicates do not distort. This
    jackknife is conservative: its variance is too large on average (Efron and Stein 1981), so the interval may be too
    wide.

    ``before`` and ``after`` are n units, each the n-grams of its texts, duplicates included. Interval and p-value are
    as in ``paired_bootstrap``. Raises InputError if they have different numbers of units, or fewer than two.

    Source: Li et al. 2016, arXiv 1510.03055 (distinct-n); Efron and Tibshirani 1993, chapter 11 (jackknife).
    """
    n = _at_least_two(len(before))
    if len(after) != n:
        raise InputError(f"before has {n} units and after {len(after)}: a paired test needs the same units")
    value_before, without_before = _distinct_and_without(before)
    value_after, without_after = _distinct_and_without(after)
    without = without_after - without_before
    influence = (n - 1) * (without.mean() - without)
    differences = (value_after - value_before) + resample_counts(n, resamples, seed) @ influence / n
    return _comparison(value_before, value_after, differences, n)


def compare_corpus(metric: Metric, before: Array, after: Array, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compare corpus BLEU or chrF, from the sacrebleu statistics of each unit, [n, k].

    The interval is that of ``paired_bootstrap`` on these statistics. The p-value is of approximate randomization, which
    swaps before and after at random unit by unit: the share of swaps, the observed one included, whose difference is at
    least as large. Ties count, unlike in sacrebleu's ``PairedTest``: where no swap can change the score, as in BLEU 0
    against 0, p is 1. It is at least 2^(1 - m), the smallest value that swaps of m differing units allow. A paired
    bootstrap's p-value is not used: it is in effect one-sided and calls two equal systems different (p < 0.05) in about
    10% of trials, where randomization keeps to 5%. Raises InputError if the shapes differ, or there are fewer than two
    units.

    Source: Riezler and Maxwell 2005 (randomization); Post 2018, arXiv 1804.08771 (sacrebleu).
    """

    def score(sums: Array) -> Array:
        rows = sums.reshape(-1, sums.shape[-1])
        return np.array([corpus_score(metric, row) for row in rows]).reshape(sums.shape[:-1])

    comparison = paired_bootstrap(before, after, statistic=score, resamples=resamples, seed=seed)
    if np.array_equal(before, after):
        return comparison
    swapped = np.random.default_rng(seed).integers(2, size=(resamples, len(before))) @ (after - before)
    differences = np.abs(score(after.sum(axis=0) - swapped) - score(before.sum(axis=0) + swapped))
    as_large = int((differences >= abs(comparison.difference) - ROUNDING).sum())
    differing = int((before != after).any(axis=1).sum())
    return replace(comparison, p_value=max((1 + as_large) / (1 + resamples), 2.0 ** (1 - differing)))


def corpus_score(metric: Metric, sums: Array) -> float:
    """Return BLEU or chrF, 0 to 100, of summed sacrebleu statistics [k]."""
    return float(metric._compute_score_from_stats(sums.tolist()).score)


def _distinct_and_without(units: Sequence[Sequence[Hashable]]) -> tuple[float, Array]:
    """Return distinct-n of all units, and of all but each one, [n]; 0 if no n-grams are left."""
    sets = [set(unit) for unit in units]
    holders = Counter(chain.from_iterable(sets))
    # Leaving a unit out loses the n-grams that no other unit has.
    own = np.array([sum(holders[gram] == 1 for gram in grams) for grams in sets], dtype=np.float64)
    sizes = np.array([len(unit) for unit in units], dtype=np.float64)
    total, distinct = float(sizes.sum()), float(len(holders))
    left = total - sizes
    without = np.divide(distinct - own, left, out=np.zeros_like(left), where=left > 0)
    return (distinct / total if total else 0.0), without


def _comparison(before: float, after: float, differences: Array, n: int) -> Comparison:
    tail = (1 - LEVEL) / 2
    difference = after - before
    differences = difference + (differences - difference) * small_sample_factor(n)
    low, high = np.quantile(differences, [tail, 1 - tail])
    extreme = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (1 + extreme) / (len(differences) + 1))
    return Comparison(before, after, difference, (float(low), float(high)), p_value, n)


def _sums(values: Array | Sequence[float]) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return np.stack([array, np.ones_like(array)], axis=-1) if array.ndim == 1 else array


def _at_least_two(n: int) -> int:
    if n < 2:
        raise InputError(f"a comparison needs at least two held-out prompts (or samples of one), not {n}")
    return n
