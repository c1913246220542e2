"""Held-out measurements of supervised runs: sums per example, compared before and after by unit of the split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.errors import InputError
from burnish.evaluation.statistics import Array, Statistic, paired_bootstrap


@dataclass(frozen=True, slots=True)
class ExampleSums:
    """The measurement of one held-out example: its unit, and numbers that are summed over a unit's examples."""

    unit: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SumMetric:
    """A metric that is a function of sums over examples.

    Attributes:
        better: "higher" or "lower".
        total, count: names of the numbers that are summed.
        statistic: sums [..., 2 + len(others)] -> metric [...].
        others: names of further numbers that are summed.
    """

    name: str
    better: str
    total: str
    count: str
    statistic: Statistic
    others: tuple[str, ...] = ()

    def unit_sums(self, examples: Sequence[ExampleSums]) -> tuple[list[str], Array]:
        """Return the units in order of appearance and their sums [n, 2 + len(others)]."""
        names = (self.total, self.count, *self.others)
        units: dict[str, list[float]] = {}
        for example in examples:
            sums = units.setdefault(example.unit, [0.0] * len(names))
            for index, name in enumerate(names):
                sums[index] += example.numbers[name]
        return list(units), np.array(list(units.values()))


def metric_values(examples: Sequence[ExampleSums], metrics: Sequence[SumMetric]) -> dict[str, float]:
    """Return metric -> value over all examples."""
    return {metric.name: float(metric.statistic(metric.unit_sums(examples)[1].sum(axis=0))) for metric in metrics}


def compare_metrics(
    before: Sequence[ExampleSums],
    after: Sequence[ExampleSums],
    metrics: Sequence[SumMetric],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return metric -> before, after, difference, interval, p_value, n and better, from a paired bootstrap over units.

    Raises:
        InputError: the two measurements cover different units.
    """
    table: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        (units, first), (others, second) = metric.unit_sums(before), metric.unit_sums(after)
        if units != others:
            raise InputError("the held-out rows differ from those that were measured before training: start a new run")
        result = paired_bootstrap(first, second, statistic=metric.statistic, resamples=resamples, seed=seed)
        table[metric.name] = {**asdict(result), "interval": list(result.interval), "better": metric.better}
    return table


def sums_to_json(examples: Sequence[ExampleSums]) -> str:
    """Return JSON from which ``sums_from_json`` restores every float exactly."""
    return json.dumps({"examples": [{"unit": example.unit, **example.numbers} for example in examples]}) + "\n"


def sums_from_json(text: str) -> list[ExampleSums]:
    """Read what ``sums_to_json`` wrote. Raise InputError for any other text."""
    try:
        rows = json.loads(text)["examples"]
        return [ExampleSums(row["unit"], {key: value for key, value in row.items() if key != "unit"}) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"not a held-out measurement ({error}): start a new run") from error
