"""What held-out examples say of a policy, written down example by example and compared before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from burnish.errors import InputError
from burnish.evaluation.statistics import Array, Statistic, paired_bootstrap


@dataclass(frozen=True, slots=True)
class Seen:
    """One held-out example: its unit of the split, and numbers that are summed over a unit's examples."""

    unit: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A statistic of sums.

    Attributes:
        better: "higher" or "lower".
        total, count: which of the numbers are summed.
        statistic: sums [..., 2] -> metric [...].
        others: numbers that are summed behind these two, for a statistic of more.
    """

    name: str
    better: str
    total: str
    count: str
    statistic: Statistic
    others: tuple[str, ...] = ()

    def sums(self, seen: Sequence[Seen]) -> tuple[list[str], Array]:
        """The units in the order they come in, and their sums [n, 2 and one for each of the others]."""
        names = (self.total, self.count, *self.others)
        units: dict[str, list[float]] = {}
        for one in seen:
            sums = units.setdefault(one.unit, [0.0] * len(names))
            for place, name in enumerate(names):
                sums[place] += one.numbers[name]
        return list(units), np.array(list(units.values()))


def summary(seen: Sequence[Seen], metrics: Sequence[Metric]) -> dict[str, float]:
    """Metric -> value over all examples."""
    return {metric.name: float(metric.statistic(metric.sums(seen)[1].sum(axis=0))) for metric in metrics}


def compare(
    before: Sequence[Seen], after: Sequence[Seen], metrics: Sequence[Metric], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Metric -> before, after, difference, interval, p_value, n and better; the units of the split are the units of the
    paired bootstrap.

    Raises:
        InputError: the two measured different units.
    """
    table: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        (units, first), (others, second) = metric.sums(before), metric.sums(after)
        if units != others:
            raise InputError("the held-out rows are not those that were measured before training: start a new run")
        found = paired_bootstrap(first, second, statistic=metric.statistic, resamples=resamples, seed=seed)
        table[metric.name] = {**asdict(found), "interval": list(found.interval), "better": metric.better}
    return table


def to_json(seen: Sequence[Seen]) -> str:
    """JSON that ``from_json`` turns back, every float to the last bit."""
    return json.dumps({"examples": [{"unit": one.unit, **one.numbers} for one in seen]}) + "\n"


def from_json(text: str) -> list[Seen]:
    """Raises InputError where the text is something else."""
    try:
        rows = json.loads(text)["examples"]
        return [Seen(row["unit"], {key: value for key, value in row.items() if key != "unit"}) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"not a held-out measurement ({error}): start a new run") from error
