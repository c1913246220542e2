"""Held-out metrics: the data of each by unit, its value, and its paired test."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from burnish.evaluation.majority import majority_accuracy
from burnish.evaluation.measurement import Measurement, Sample
from burnish.evaluation.statistics import (
    Array,
    Comparison,
    Statistic,
    compare_corpus,
    compare_distinct,
    corpus_score,
    mean_of_units,
    paired_bootstrap,
    perplexity_of_units,
)
from burnish.rewards.library.diversity import distinct_n
from burnish.rewards.library.overlap import load_bleu, tokenizer_for
from burnish.text import ngrams, words

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as CorpusMetric

D = TypeVar("D", bound=Sized)
Better = Literal["higher", "lower"]
BLEU_ORDER = 4
_DIRECTIONS: Mapping[str, Better] = {"higher": "higher", "lower": "lower"}


@dataclass(frozen=True, slots=True)
class HeldOutMetric(Generic[D]):
    """A metric of one measurement: its data, with an item for each unit, and the functions that take it.

    Attributes:
        name: as in the evaluation table.
        better: which direction is an improvement; None if neither.
        value: data -> the metric over all units.
        compare: data before and after, with the keyword arguments resamples and seed -> their comparison.
    """

    name: str
    better: Better | None
    data: D
    value: Callable[[D], float]
    compare: Callable[..., Comparison]


def held_out_metrics(measurement: Measurement, bleu_tokenize: str) -> list[HeldOutMetric[Any]]:
    """Return every metric that the measurement has data for, in the order of the evaluation table.

    Those of a further set are called ``set/<set>/<metric>``.
    """
    metrics = _set_metrics(measurement, bleu_tokenize)
    for name, one in measurement.sets.items():
        for metric in _set_metrics(one, bleu_tokenize):
            metrics.append(replace(metric, name=f"set/{name}/{metric.name}"))
    return metrics


def _set_metrics(measurement: Measurement, bleu_tokenize: str) -> list[HeldOutMetric[Any]]:
    samples = measurement.samples
    unit = _units(samples)
    counts = [1.0] * len(samples)
    lengths = [float(sample.tokens) for sample in samples]

    def per_unit(numerator: Sequence[float], denominator: Sequence[float]) -> Array:
        return _pooled(np.array([numerator, denominator], dtype=np.float64).T, unit)

    def per_applying(values: Sequence[Mapping[str, float]], name: str) -> Array:
        return per_unit([one.get(name, 0.0) for one in values], [float(name in one) for one in values])

    metrics: list[HeldOutMetric[Any]] = [
        _ratio("reward", "higher", per_unit([sample.reward for sample in samples], counts), mean_of_units)
    ]
    for part, weight in measurement.weights.items():
        better: Better = "lower" if weight < 0 else "higher"
        if any(part in sample.parts for sample in samples):
            sums = per_applying([sample.parts for sample in samples], part)
            metrics.append(_ratio(f"reward/{part}", better, sums, mean_of_units))
    for name, direction in measurement.metrics.items():
        if any(name in sample.metrics for sample in samples):
            sums = per_applying([sample.metrics for sample in samples], name)
            metrics.append(_ratio(f"metric/{name}", _DIRECTIONS.get(direction), sums, mean_of_units))
    metrics += _attempts(measurement, unit)
    likelihoods = per_unit([sample.nll for sample in samples], lengths)
    truths = np.array([[truth.nll, truth.tokens] for truth in measurement.truths], dtype=np.float64)
    for name, sums in (("perplexity", likelihoods), ("truth_perplexity", truths)):
        if sums.size and np.isfinite(sums).all() and (sums[:, 1] > 0).all():
            metrics.append(_ratio(name, "lower", sums, perplexity_of_units))
    metrics += _overlap(samples, bleu_tokenize)
    for n in (1, 2):
        metrics.append(_distinct(n, [words(sample.text) for sample in samples], unit))
    metrics.append(_ratio("length", None, per_unit(lengths, counts), mean_of_units))
    return metrics


def _attempts(measurement: Measurement, unit: Sequence[int]) -> list[HeldOutMetric[Array]]:
    """Return avg@n, pass@k and maj@k of the part that is 1 for a right answer, means over prompts; [] without one.

    pass@k is unbiased: 1 - C(n - c, k) / C(n, k) with c right answers of n (Chen et al. 2021, arXiv 2107.03374,
    equation 1); so is maj@k, see ``majority_accuracy``. A value of 1 up to rounding is right, any other is wrong.
    Samples that the part does not apply to count in none, and pass@k and maj@k leave out prompts with fewer than k
    others.
    """
    name, samples = measurement.correct, measurement.samples
    if name is None or len({sample.prompt_id for sample in samples}) < 2:
        return []
    values = [sample.parts.get(name, sample.metrics.get(name)) for sample in samples]
    rows = [[value is not None and value >= 1 - 1e-9, value is not None, 1.0] for value in values]
    pooled = _pooled(np.array(rows, dtype=np.float64), unit)
    right, n = pooled[:, :2], int(pooled[:, 2].max())
    metrics = [_ratio(f"avg@{n}", "higher", right, mean_of_units)] if right[:, 1].any() else []
    for k in measurement.attempts:
        solved = [_solved(int(c), int(count), k) for c, count in right]
        if any(counted for _, counted in solved):
            metrics.append(_ratio(f"pass@{k}", "higher", np.array(solved), mean_of_units))
    ballots: list[list[tuple[int | None, float]]] = [[] for _ in right]
    for index, sample, row in zip(unit, samples, rows, strict=True):
        if row[1]:
            ballots[index].append((sample.vote, float(row[0])))
    for k in measurement.majorities:
        elected = [_elected(ballot, k) for ballot in ballots]
        if any(counted for _, counted in elected):
            metrics.append(_ratio(f"maj@{k}", "higher", np.array(elected), mean_of_units))
    return metrics


def _elected(ballot: Sequence[tuple[int | None, float]], k: int) -> tuple[float, float]:
    """Return a prompt's maj@k and its weight, which is 0 where fewer than k samples were judged."""
    if len(ballot) < k:
        return 0.0, 0.0
    groups: dict[int, tuple[int, int]] = {}
    for vote, right in ballot:
        if vote is not None:
            size, rights = groups.get(vote, (0, 0))
            groups[vote] = (size + 1, rights + int(right))
    silent = len(ballot) - sum(size for size, _ in groups.values())
    return majority_accuracy(tuple(sorted(groups.values())), silent, k), 1.0


def _solved(right: int, count: int, k: int) -> tuple[float, float]:
    """Return a prompt's pass@k and its weight, which is 0 where fewer than k samples were judged."""
    return (1 - math.comb(count - right, k) / math.comb(count, k), 1.0) if count >= k else (0.0, 0.0)


def _ratio(name: str, better: Better | None, sums: Array, statistic: Statistic) -> HeldOutMetric[Array]:
    compare = partial(paired_bootstrap, statistic=statistic)
    return HeldOutMetric(name, better, sums, lambda data: float(statistic(data.sum(axis=0))), compare)


def _distinct(n: int, texts: Sequence[Sequence[str]], unit: Sequence[int]) -> HeldOutMetric[list[list[Hashable]]]:
    grams: list[list[Hashable]] = [[] for _ in range(max(unit) + 1)]
    for text, index in zip(texts, unit, strict=True):
        grams[index].extend(ngrams(text, n))
    return HeldOutMetric(f"distinct_{n}", "higher", grams, lambda _: distinct_n(texts, n), compare_distinct)


def _overlap(samples: Sequence[Sample], bleu_tokenize: str) -> list[HeldOutMetric[Array]]:
    """Return corpus BLEU and chrF over the samples whose prompt has a reference.

    BLEU is left out where the median reference has fewer than four tokens: it has no 4-gram to match.
    """
    from sacrebleu.metrics.chrf import CHRF

    answered = [sample for sample in samples if sample.reference]
    if not answered:
        return []
    texts = [sample.text for sample in answered]
    # Reference k of every sample is a stream; sacrebleu skips the empty ones of samples with fewer references.
    columns = zip_longest(*[(sample.reference or "", *sample.alternatives) for sample in answered], fillvalue="")
    references = [list(column) for column in columns]
    metrics = []
    if bleu_tokenize == "auto":
        bleu_tokenize = tokenizer_for(references[0])
    for name, corpus in (("bleu", load_bleu(bleu_tokenize, effective_order=False)), ("chrf", CHRF())):
        rows = np.array(corpus._extract_corpus_statistics(texts, references), dtype=np.float64)
        if name == "bleu" and np.median(rows[:, 1]) < BLEU_ORDER:
            continue
        metrics.append(_corpus(name, corpus, _pooled(rows, _units(answered))))
    return metrics


def _corpus(name: str, corpus: CorpusMetric, sums: Array) -> HeldOutMetric[Array]:
    compare = partial(compare_corpus, corpus)
    return HeldOutMetric(name, "higher", sums, lambda data: corpus_score(corpus, data.sum(axis=0)), compare)


def _units(samples: Sequence[Sample]) -> list[int]:
    """Return the unit of each sample, numbered from 0: its prompt, or the sample itself if there is only one prompt."""
    keys: list[Hashable] = [sample.prompt_id for sample in samples]
    if len(set(keys)) == 1:
        return list(range(len(samples)))
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _pooled(rows: Array, unit: Sequence[int]) -> Array:
    """Sum rows [N, k] over each unit; [n, k]."""
    sums = np.zeros((max(unit) + 1, rows.shape[1]), dtype=np.float64)
    np.add.at(sums, np.asarray(unit), rows)
    return sums
