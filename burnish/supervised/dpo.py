"""DPO and IPO: preference optimisation from pairs of answers, relative to the initial model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from burnish.algorithms.ops import sum_by_sequence
from burnish.algorithms.preference import dpo_loss, ipo_loss
from burnish.algorithms.table_gradients import adding_to_grad
from burnish.data.rows import PreferencePair, TrainingRow
from burnish.errors import InputError
from burnish.evaluation.statistics import mean_of_units, perplexity_of_units
from burnish.protocols import Policy
from burnish.supervised.encoding import Encoder
from burnish.supervised.objective import (
    PLAIN,
    Example,
    ExampleSums,
    Objective,
    SumMetric,
    accuracy,
    encode_pair,
    example_batches,
    flatten,
    reference_logprobs,
    text_lengths,
)  # fmt: skip
from burnish.training.batching import TokenBudget

PairLoss = Callable[[Tensor, Tensor, float], Tensor]
PAIR_LOSSES: Mapping[str, PairLoss] = {"dpo": dpo_loss, "ipo": ipo_loss}


class PairPreference(Objective[Policy]):
    """DPO or IPO: raises the preferred answer over the rejected one, relative to the initial model.

    A completion's implicit reward is ``beta (log pi - log pi_ref)``, summed over its tokens (arXiv 2305.18290, section
    4); a pair's margin is the implicit reward of the preferred answer minus that of the rejected one.
    """

    metrics: tuple[SumMetric, ...] = (
        SumMetric("preference_accuracy", "higher", "right", "pairs", mean_of_units),
        SumMetric("preference_margin", "higher", "margin", "pairs", mean_of_units),
        SumMetric("chosen_perplexity", "lower", "chosen_nll", "chosen_tokens", perplexity_of_units),
    )

    def __init__(self, loss: PairLoss, beta: float) -> None:
        self.loss, self.beta = loss, beta

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if not isinstance(row, PreferencePair):
            raise InputError(
                "these rows are texts: DPO and IPO learn from pairs; "
                "use KTO for labelled answers, `burnish sft` for texts"
            )
        return [Example(row.unit, encode_pair(encoder, row))]

    def backward(self, policy: Policy, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        total, margins = 0.0, []
        for part in example_batches(examples, budget):
            texts, completions = flatten(part)
            reference = reference_logprobs(policy, completions)
            with adding_to_grad():
                ratios = policy.logprobs(completions, PLAIN).logprobs.double() - reference
            chosen, rejected = sum_by_sequence(ratios, text_lengths(texts)).view(-1, 2).unbind(1)
            loss = self.loss(chosen, rejected, self.beta).sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            margins.append(self.beta * (chosen - rejected).detach())
            del ratios, chosen, rejected, loss
        margin = torch.cat(margins)
        return {
            "loss": total,
            "preference/accuracy": float(accuracy(margin).mean()),
            "preference/margin": float(margin.mean()),
            "tokens": sum(len(text.token_ids) for example in examples for text in example.texts),
        }

    def sums(self, policy: Policy, examples: Sequence[Example]) -> list[ExampleSums]:
        texts, completions = flatten(examples)
        lengths = text_lengths(texts)
        logprobs = policy.token_logprobs(completions).double()
        likelihoods = sum_by_sequence(logprobs, lengths).view(-1, 2)
        ratios = sum_by_sequence(logprobs - reference_logprobs(policy, completions), lengths).view(-1, 2)
        margins = self.beta * (ratios[:, 0] - ratios[:, 1])
        measured = []
        for example, margin, likelihood in zip(examples, margins, likelihoods, strict=True):
            numbers = {
                "right": float(accuracy(margin)), "margin": float(margin), "pairs": 1,
                "chosen_nll": -float(likelihood[0]), "chosen_tokens": len(example.texts[0].token_ids),
            }  # fmt: skip
            measured.append(ExampleSums(example.unit, numbers))
        return measured
