"""The Bradley-Terry objective of a reward model: the preferred answer of a pair scores higher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.preference import bradley_terry_loss
from burnish.data.rows import ConversationPair, PreferencePair, TrainingRow
from burnish.errors import InputError
from burnish.evaluation.calibration import calibration
from burnish.evaluation.statistics import mean_of_units
from burnish.policies.reward_model import Reads, RewardModel
from burnish.supervised.encoding import Encoder
from burnish.supervised.objective import (
    Example,
    ExampleSums,
    Objective,
    SumMetric,
    accuracy,
    encode_pair,
    example_batches,
    flatten,
)  # fmt: skip
from burnish.training.batching import TokenBudget


class BradleyTerry(Objective[RewardModel]):
    """The mean over the step's pairs of ``burnish.algorithms.preference.bradley_terry_loss``.

    Held-out metrics, without margin and centre: how often the preferred answer scores higher, the mean score
    difference, and its -log sigmoid, a proper scoring rule. ``margin`` is that of pairs whose row has none; ``centre``
    is the coefficient of the term that pulls the scores towards zero.
    """

    metrics: tuple[SumMetric, ...] = (
        SumMetric("preference_accuracy", "higher", "right", "pairs", mean_of_units),
        SumMetric("preference_nll", "lower", "nll", "pairs", mean_of_units),
        SumMetric("preference_margin", "higher", "margin", "pairs", mean_of_units),
    )

    def __init__(self, *, margin: float = 0.0, centre: float = 0.0) -> None:
        self.margin, self.centre = margin, centre
        self._reads: set[Reads] = set()

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if not isinstance(row, PreferencePair | ConversationPair):
            raise InputError("these rows are texts: `burnish reward-model` learns from pairs, `burnish sft` from texts")
        example = Example(row.unit, encode_pair(encoder, row), row.margin)
        self._reads.add("text" if isinstance(row, PreferencePair) else "chat")
        return [example]

    def prepare(self, policy: RewardModel, encoder: Encoder) -> None:
        policy.reads = "both" if len(self._reads) > 1 else next(iter(self._reads), "text")

    def backward(self, policy: RewardModel, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        total = 0.0
        pair_scores: list[Tensor] = []
        for part in example_batches(examples, budget):
            scores = policy.scores(flatten(part)[1]).double().view(-1, 2)
            margins = torch.tensor([self.margin if example.margin is None else example.margin for example in part])
            losses = bradley_terry_loss(scores[:, 0], scores[:, 1], margins.double(), self.centre)
            loss = losses.sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            pair_scores.append(scores.detach())
        scores = torch.cat(pair_scores)
        margin = scores[:, 0] - scores[:, 1]
        return {
            "loss": total,
            "preference/accuracy": float(accuracy(margin).mean()),
            "preference/margin": float(margin.mean()),
            "score/mean": float(scores.mean()),
            "score/std": float(scores.std()),
            "tokens": sum(len(text.token_ids) for example in examples for text in example.texts),
        }

    def sums(self, policy: RewardModel, examples: Sequence[Example]) -> list[ExampleSums]:
        scores = policy.scores(flatten(examples)[1]).detach().double().view(-1, 2)
        margins = scores[:, 0] - scores[:, 1]
        losses = bradley_terry_loss(scores[:, 0], scores[:, 1])
        measured = []
        for example, margin, loss in zip(examples, margins, losses, strict=True):
            numbers = {"right": float(accuracy(margin)), "nll": float(loss), "margin": float(margin), "pairs": 1}
            measured.append(ExampleSums(example.unit, numbers))
        return measured

    def conclude(self, sums: Sequence[ExampleSums], seed: int) -> Mapping[str, Any]:
        """Return ``calibration.json``: is the sigmoid of a score difference the share of pairs ranked correctly?"""
        margins = np.array([one.numbers["margin"] for one in sums])
        confidence = 1 / (1 + np.exp(-np.abs(margins)))
        right = np.array([one.numbers["right"] for one in sums])
        return {"calibration.json": calibration(confidence, right, seed=seed)}
