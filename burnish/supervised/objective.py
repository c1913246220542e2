"""Supervised objectives: from rows to examples, their loss and gradient, and held-out measurements.

Losses and metrics are computed over the whole step, so the split into microbatches does not change them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from burnish.data.rows import PreferencePair, TrainingRow
from burnish.protocols import LanguageModel, Policy
from burnish.supervised.encoding import Encoded, Encoder
from burnish.supervised.measurement import ExampleSums, SumMetric
from burnish.training.batching import TokenBudget
from burnish.types import Completion, SamplingParams

PLAIN = SamplingParams(max_new_tokens=1)
"""The full softmax at temperature 1: training fits the model's own distribution."""


@dataclass(frozen=True, slots=True)
class Example:
    """One unit of training: a text, a labelled answer, or two answers to a prompt, the preferred one first.

    Attributes:
        unit: all examples of one unit are on one side of the split.
        margin: the margin of a pair whose row has one.
        desirable: the label of a labelled answer.
    """

    unit: str
    texts: tuple[Encoded, ...]
    margin: float | None = None
    desirable: bool | None = None


P = TypeVar("P", contravariant=True)


class Objective(Protocol[P]):
    """The loss that a supervised command minimises; P is the type of the trained model."""

    metrics: tuple[SumMetric, ...]

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        """Return the examples of a row.

        Raises:
            ValueError: this row cannot be used.
            InputError: the objective cannot use rows of this kind.
        """
        ...

    def backward(self, policy: P, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        """Add the gradient of the step's loss and return the step's metrics, including ``loss`` and ``tokens``."""
        ...

    def sums(self, policy: P, examples: Sequence[Example]) -> list[ExampleSums]:
        """Return the sums of each held-out example."""
        ...

    def conclude(self, sums: Sequence[ExampleSums], seed: int) -> Mapping[str, Any]:
        """Return additional files about the measurement after training: file name -> JSON value."""
        ...


class MetricsOnly:
    """Base class of objectives that write no additional files."""

    def conclude(self, sums: Sequence[ExampleSums], seed: int) -> Mapping[str, Any]:
        return {}


def encode_pair(encoder: Encoder, row: PreferencePair) -> tuple[Encoded, ...]:
    """Return the preferred and the rejected answer. Raise ValueError if they are equal or cannot be used."""
    texts = tuple(encoder.text(row.unit, row.prompt, answer) for answer in (row.chosen, row.rejected))
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
    reference: LanguageModel = policy.reference
    return reference.token_logprobs(completions).double()


def text_lengths(texts: Sequence[Encoded]) -> Tensor:
    """Return the number of tokens after each prompt, [N]."""
    return torch.tensor([len(text.token_ids) for text in texts])


def learnt_mask(texts: Sequence[Encoded]) -> Tensor:
    """Return which tokens are learnt, [T] bool."""
    return torch.tensor([flag for text in texts for flag in text.learnt])


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
