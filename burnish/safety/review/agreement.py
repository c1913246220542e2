"""Agreement of reviewers who label the same items: raw, Gwet's AC1, Fleiss' and Cohen's kappa, with intervals.

Counts are ``[n, q]``: how many reviewers gave item i the label k. Items may have different numbers of reviewers, at
least two. If all labels are equal, the kappas are 0/0 and reported as undefined; AC1 is 1 there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from burnish.safety.review.store import LABELS, Judgement

Counts: TypeAlias = "np.typing.NDArray[np.float64]"

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A coefficient with its 95% bootstrap interval over items; both None where it is undefined."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement on the items of one kind that two or more people judged; ``cohen`` only of exactly two people."""

    items: int
    all_equal: bool
    raw: Coefficient
    ac1: Coefficient
    fleiss: Coefficient
    cohen: Coefficient | None


def raw_agreement(counts: Counts) -> float:
    """Return the mean share of agreeing pairs of reviewers per item.

    Source: Fleiss 1971, Psychological Bulletin 76, equation 2; with different numbers of reviewers as in Gwet 2014.
    """
    raters = counts.sum(axis=1)
    agreeing = (counts**2).sum(axis=1) - raters
    return float((agreeing / (raters * (raters - 1))).mean())


def gwet_ac1(counts: Counts) -> float:
    """Return (p_a - p_e) / (1 - p_e) with p_e = sum_k pi_k (1 - pi_k) / (q - 1), pi_k the mean share of label k.

    Source: Gwet 2008, British Journal of Mathematical and Statistical Psychology 61, equations 5 and 6.
    """
    shares = _shares(counts)
    return _corrected(raw_agreement(counts), float((shares * (1 - shares)).sum()) / (counts.shape[1] - 1))


def fleiss_kappa(counts: Counts) -> float:
    """Return (p_a - p_e) / (1 - p_e) with p_e = sum_k pi_k^2; nan if all labels are equal.

    Source: Fleiss 1971, equations 6 and 7.
    """
    return _corrected(raw_agreement(counts), float((_shares(counts) ** 2).sum()))


def cohen_kappa(table: Counts) -> float:
    """Return kappa of two reviewers, from the [q, q] table of their labels; nan if all labels are equal.

    Source: Cohen 1960, Educational and Psychological Measurement 20, equation 1.
    """
    shares = table / table.sum()
    return _corrected(float(np.trace(shares)), float(shares.sum(axis=1) @ shares.sum(axis=0)))


def measure_agreement(judgements: Iterable[Judgement], kind: str, *, seed: int = 0) -> Agreement | None:
    """Return the agreement on the items of one kind; None if no item has two judgements."""
    labels: dict[int, dict[str, int]] = defaultdict(dict)
    for one in judgements:
        if one.item.kind == kind:
            labels[one.item.id][one.reviewer] = LABELS[kind].index(one.answer.label)
    shared = [given for given in labels.values() if len(given) > 1]
    if not shared:
        return None
    size = len(LABELS[kind])
    counts = np.array([np.bincount(list(given.values()), minlength=size) for given in shared], dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(shared), size=(RESAMPLES, len(shared)))

    def measured(statistic: Callable[[Counts], float]) -> Coefficient:
        return _coefficient(statistic(counts), [statistic(counts[draw]) for draw in draws])

    people = sorted({name for given in shared for name in given})
    return Agreement(
        items=len(shared),
        all_equal=int((counts.sum(axis=0) > 0).sum()) == 1,
        raw=measured(raw_agreement),
        ac1=measured(gwet_ac1),
        fleiss=measured(fleiss_kappa),
        cohen=_cohen([(given[people[0]], given[people[1]]) for given in shared], size, draws)
        if len(people) == 2
        else None,
    )


def _cohen(pairs: Sequence[tuple[int, int]], size: int, draws: np.typing.NDArray[np.int64]) -> Coefficient:
    cells = np.array([first * size + second for first, second in pairs])

    def kappa(chosen: np.typing.NDArray[np.int64]) -> float:
        return cohen_kappa(np.bincount(chosen, minlength=size * size).reshape(size, size).astype(np.float64))

    return _coefficient(kappa(cells), [kappa(cells[draw]) for draw in draws])


def _shares(counts: Counts) -> Counts:
    return np.asarray((counts / counts.sum(axis=1, keepdims=True)).mean(axis=0))


def _corrected(agreement: float, by_chance: float) -> float:
    return math.nan if by_chance == 1.0 else (agreement - by_chance) / (1 - by_chance)


def _coefficient(value: float, resampled: Sequence[float]) -> Coefficient:
    """Return a value with the percentile interval of its resamples, without those that are undefined."""
    if math.isnan(value):
        return Coefficient(None, None)
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Coefficient(value, (float(low), float(high)))
