"""Preference optimisation from pairs of answers: DPO and IPO, relative to the initial model; SimPO, ORPO and CPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.algorithms.preference import dpo_loss, ipo_loss, orpo_loss, simpo_loss
from burnish.algorithms.table_gradients import adding_to_grad
from burnish.data.rows import ConversationPair, PreferencePair, TrainingRow
from burnish.errors import InputError
from burnish.evaluation.statistics import mean_of_units, perplexity_of_units
from burnish.protocols import Policy
from burnish.supervised.encoding import Encoded, Encoder
from burnish.supervised.objective import (
    PLAIN,
    Example,
    ExampleSums,
    Objective,
    SumMetric,
    accuracy,
    answer_lengths,
    answer_sums,
    encode_pair,
    example_batches,
    flatten,
    reference_logprobs,
)  # fmt: skip
from burnish.supervised.recipe import Preference
from burnish.training.batching import TokenBudget
from burnish.types import Completion

PairLoss = Callable[[Tensor, Tensor, Preference], Tensor]


@dataclass(frozen=True, slots=True)
class PairForm:
    """A loss of two answers' likelihoods, and whether these are relative to the initial model."""

    loss: PairLoss
    relative: bool


PAIR_FORMS: Mapping[str, PairForm] = {
    "dpo": PairForm(lambda c, r, s: dpo_loss(c, r, s.beta, s.label_smoothing), relative=True),
    "ipo": PairForm(lambda c, r, s: ipo_loss(c, r, s.beta), relative=True),
    "simpo": PairForm(lambda c, r, s: simpo_loss(c, r, s.beta, s.margin, s.label_smoothing), relative=False),
    "orpo": PairForm(lambda c, r, s: s.beta * orpo_loss(c, r), relative=False),
    "cpo": PairForm(lambda c, r, s: dpo_loss(c, r, s.beta, s.label_smoothing), relative=False),
}


class PairPreference(Objective[Policy]):
    """Raises the preferred answer over the rejected one.

    The likelihood of an answer is ``log pi - log pi_ref`` (DPO, IPO) or ``log pi`` (SimPO, ORPO, CPO), summed over its
    learnt tokens, or their mean with ``length_normalised``. Times beta, it is the answer's implicit reward (arXiv
    2305.18290, section 4); a pair's margin is that of the preferred answer minus that of the rejected one. The
    supervised term is the preferred answer's mean negative log-likelihood per token (arXiv 2404.19733).
    """

    metrics: tuple[SumMetric, ...] = (
        SumMetric("preference_accuracy", "higher", "right", "pairs", mean_of_units),
        SumMetric("preference_margin", "higher", "margin", "pairs", mean_of_units),
        SumMetric("chosen_perplexity", "lower", "chosen_nll", "chosen_tokens", perplexity_of_units),
    )

    def __init__(self, settings: Preference) -> None:
        self.settings, self.form = settings, PAIR_FORMS[settings.use]

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if not isinstance(row, PreferencePair | ConversationPair):
            raise InputError(
                f"these rows are texts: {self.settings.use.upper()} learns from pairs; "
                "use KTO for labelled answers, `burnish sft` for texts"
            )
        return [Example(row.unit, encode_pair(encoder, row))]

    def backward(self, policy: Policy, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        total, margins = 0.0, []
        for part in example_batches(examples, budget):
            texts, completions = flatten(part)
            reference = self._reference(policy, completions)
            with adding_to_grad():
                logprobs = policy.logprobs(completions, PLAIN).logprobs.double()
            chosen, rejected = self._likelihoods(logprobs - reference, texts).unbind(1)
            losses = self.form.loss(chosen, rejected, self.settings)
            if self.settings.supervised_weight:
                means = answer_sums(logprobs, texts) / answer_lengths(texts)
                losses = losses - self.settings.supervised_weight * means.view(-1, 2)[:, 0]
            loss = losses.sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            margins.append(self.settings.beta * (chosen - rejected).detach())
            del logprobs, chosen, rejected, losses, loss
        margin = torch.cat(margins)
        return {
            "loss": total,
            "preference/accuracy": float(accuracy(margin).mean()),
            "preference/margin": float(margin.mean()),
            "tokens": sum(len(text.token_ids) for example in examples for text in example.texts),
        }

    def sums(self, policy: Policy, examples: Sequence[Example]) -> list[ExampleSums]:
        texts, completions = flatten(examples)
        logprobs = policy.token_logprobs(completions).double()
        chosen_logprobs = answer_sums(logprobs, texts).view(-1, 2)[:, 0]
        likelihoods = self._likelihoods(logprobs - self._reference(policy, completions), texts)
        margins = self.settings.beta * (likelihoods[:, 0] - likelihoods[:, 1])
        measured = []
        for example, margin, chosen in zip(examples, margins, chosen_logprobs, strict=True):
            numbers = {
                "right": float(accuracy(margin)), "margin": float(margin), "pairs": 1,
                "chosen_nll": -float(chosen), "chosen_tokens": sum(example.texts[0].learnt),
            }  # fmt: skip
            measured.append(ExampleSums(example.unit, numbers))
        return measured

    def _reference(self, policy: Policy, completions: Sequence[Completion]) -> Tensor | float:
        return reference_logprobs(policy, completions) if self.form.relative else 0.0

    def _likelihoods(self, values: Tensor, texts: Sequence[Encoded]) -> Tensor:
        """Return the likelihoods of the preferred and the rejected answer of each pair, [M, 2]."""
        sums = answer_sums(values, texts)
        return (sums / answer_lengths(texts) if self.settings.length_normalised else sums).view(-1, 2)
