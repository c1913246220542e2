"""Supervised objectives: from rows to examples, their loss and gradient, and held-out metrics.

Losses and metrics are computed over the whole step, so the split into microbatches does not change them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.ops import sum_by_sequence
from burnish.data.rows import ConversationPair, PreferencePair, TrainingRow
from burnish.errors import InputError
from burnish.evaluation.statistics import Array, Statistic, paired_bootstrap
from burnish.protocols import Policy
from burnish.supervised.encoding import Encoded, Encoder
from burnish.training.batching import TokenBudget
from burnish.types import Completion, SamplingParams

PLAIN = SamplingParams(max_new_tokens=1)
"""The full softmax at temperature 1: training fits the model's own distribution."""


@dataclass(frozen=True, slots=True)
class Example:
    """One unit of training: a text, a labelled answer, or two answers to a prompt, the preferred one first.

    All examples of one unit are on one side of the split. ``margin`` is that of a pair whose row has one, ``desirable``
    the label of a labelled answer.
    """

    unit: str
    texts: tuple[Encoded, ...]
    margin: float | None = None
    desirable: bool | None = None


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
            sums[:] = [total + example.numbers[name] for total, name in zip(sums, names, strict=True)]
        return list(units), np.array(list(units.values()))


P = TypeVar("P", contravariant=True)


class Objective(Protocol[P]):
    """The loss that a supervised command minimises, over models of type P. Objectives inherit ``conclude``."""

    metrics: tuple[SumMetric, ...]

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        """Return the examples of a row.

        Raises:
            ValueError: this row cannot be used.
            InputError: the objective cannot use rows of this kind.
        """

    def backward(self, policy: P, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        """Add the gradient of the step's loss and return the step's metrics, including ``loss`` and ``tokens``."""

    def sums(self, policy: P, examples: Sequence[Example]) -> list[ExampleSums]:
        """Return the sums of each held-out example."""

    def prepare(self, policy: P, encoder: Encoder) -> None:
        """Tell the model how its rows were encoded, once all examples are made."""
        return None

    def conclude(self, sums: Sequence[ExampleSums], seed: int) -> Mapping[str, Any]:
        """Return additional files about the measurement after training: file name -> JSON value."""
        return {}


def encode_pair(encoder: Encoder, row: PreferencePair | ConversationPair) -> tuple[Encoded, ...]:
    """Return the preferred and the rejected answer. Raise ValueError if they are equal or cannot be used."""
    if isinstance(row, PreferencePair):
        texts = tuple(encoder.text(row.unit, row.prompt, answer) for answer in (row.chosen, row.rejected))
    else:
        texts = tuple(encoder.continuation(row, answer) for answer in (row.chosen, row.rejected))
    if texts[0].token_ids == texts[1].token_ids:
        raise ValueError("chosen and rejected are equal up to batch.max_tokens, where they are cut")
    return texts


def accuracy(margins: Tensor) -> Tensor:
    """Return 1 for each positive margin, 0 for each negative one and 0.5 for zero, the value of all before training."""
    return (margins.sign() + 1) / 2


def flatten(examples: Sequence[Example]) -> tuple[list[Encoded], list[Completion]]:
    """Return the examples' texts in order, encoded and as completions."""
    texts = [text for example in examples for text in example.texts]
    return texts, [text.completion() for text in texts]


def reference_logprobs(policy: Policy, completions: Sequence[Completion]) -> Tensor:
    """Return log-probabilities [T], float64, under the model that training started from."""
    return policy.reference.token_logprobs(completions).double()


def text_lengths(texts: Sequence[Encoded]) -> Tensor:
    """Return the number of tokens after each prompt, [N]."""
    return torch.tensor([len(text.token_ids) for text in texts])


def learnt_mask(texts: Sequence[Encoded]) -> Tensor:
    """Return which tokens are learnt, [T] bool."""
    return torch.tensor([flag for text in texts for flag in text.learnt])


def answer_sums(values: Tensor, texts: Sequence[Encoded]) -> Tensor:
    """Return the sum of per-token values [T] over the learnt tokens of each text, [N]."""
    return sum_by_sequence(torch.where(learnt_mask(texts), values, 0.0), text_lengths(texts))


def answer_lengths(texts: Sequence[Encoded]) -> Tensor:
    """Return the number of learnt tokens of each text, [N]."""
    return torch.tensor([sum(text.learnt) for text in texts])


def example_batches(examples: Sequence[Example], budget: TokenBudget) -> list[list[Example]]:
    """Return the examples in order, cut into microbatches. A pair shares one loss and stays together at any size."""
    batches: list[list[Example]] = []
    filled = 0
    for example in examples:
        size = len(example.texts[0].prompt_ids) + sum(len(text.token_ids) for text in example.texts)
        if not batches or filled + size > budget.usual:
            batches.append([])
            filled = 0
        batches[-1].append(example)
        filled += size
    return batches


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

    Raises InputError if the two measurements cover different units.
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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"not a held-out measurement ({error}): start a new run") from error
