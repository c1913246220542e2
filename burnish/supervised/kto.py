"""KTO: preference optimisation from single answers, each labelled desirable or undesirable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.preference import kto_loss, kto_reference_point
from burnish.data.rows import (
    ConversationPair,
    LabelledCompletion,
    LabelledConversation,
    PreferencePair,
    TrainingRow,
)  # fmt: skip
from burnish.errors import InputError
from burnish.evaluation.statistics import Array, mean_of_units
from burnish.protocols import Policy
from burnish.supervised.encoding import Encoded, Encoder
from burnish.supervised.objective import (
    PLAIN,
    Example,
    ExampleSums,
    Objective,
    SumMetric,
    accuracy,
    answer_sums,
    encode_pair,
    flatten,
    reference_logprobs,
)  # fmt: skip
from burnish.training.batching import TokenBudget, microbatches


def desirable_gap(sums: Array) -> Array:
    """Return the desirable answers' mean minus the undesirable ones', each 0 in a resample without such answers.

    Sums are [..., 4]: total, count, total, count.
    """
    return _mean(sums[..., 0], sums[..., 1]) - _mean(sums[..., 2], sums[..., 3])


def perplexity_or_one(sums: Array) -> Array:
    """Return corpus perplexity, sums [..., 2] -> [...]; 1 if a resample has no token."""
    return np.exp(_mean(sums[..., 0], sums[..., 1]))


def _mean(total: Array, count: Array) -> Array:
    return np.asarray(np.where(count > 0, total, 0.0) / np.where(count > 0, count, 1.0))


class KTO(Objective[Policy]):
    """KTO (arXiv 2402.01306, equation 8): raises desirable answers and lowers undesirable ones.

    The loss is the mean over the step's answers; a pair counts as two, one of each label. The reference point z0, the
    KL divergence of the policy from its reference, is estimated as in the paper's section 4.2, by pairing each prompt
    with the answer to another prompt. The estimate uses the whole step; the paper's code uses a microbatch.

    ``beta`` is as in ``PairPreference``; the weights are lambda_D and lambda_U.
    """

    metrics: tuple[SumMetric, ...] = (
        SumMetric("label_accuracy", "higher", "right", "answers", mean_of_units),
        SumMetric("reward_gap", "higher", "good_reward", "good", desirable_gap, ("bad_reward", "bad")),
        SumMetric("desirable_perplexity", "lower", "good_nll", "good_tokens", perplexity_or_one),
    )

    def __init__(self, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if isinstance(row, PreferencePair | ConversationPair):
            chosen, rejected = encode_pair(encoder, row)
            return [Example(row.unit, (chosen,), desirable=True), Example(row.unit, (rejected,), desirable=False)]
        if isinstance(row, LabelledConversation):
            return [Example(row.unit, (encoder.continuation(row, row.completion),), desirable=row.desirable)]
        if not isinstance(row, LabelledCompletion):
            raise InputError("these rows are texts without a label: KTO learns from labelled answers or from pairs")
        return [Example(row.unit, (encoder.text(row.unit, row.prompt, row.completion),), desirable=row.desirable)]

    def backward(self, policy: Policy, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        texts, completions = flatten(examples)
        desirable = torch.tensor([bool(example.desirable) for example in examples])
        point = self.reference_point(policy, texts)
        total = 0.0
        rewards = torch.zeros(len(examples), dtype=torch.float64)
        for indices in microbatches(completions, range(len(completions)), budget):
            part = [completions[index] for index in indices]
            ratios = policy.logprobs(part, PLAIN).logprobs.double() - reference_logprobs(policy, part)
            sums = answer_sums(ratios, [texts[index] for index in indices])
            weights = self.desirable_weight, self.undesirable_weight
            loss = kto_loss(sums, desirable[indices], point, self.beta, *weights).sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            rewards[indices] = self.beta * sums.detach()
        return {
            "loss": total,
            "preference/accuracy": float(accuracy(torch.where(desirable, rewards, -rewards)).mean()),
            "preference/reference_point": float(point),
            "preference/desirable": float(desirable.double().mean()),
            "tokens": sum(len(text.token_ids) for text in texts),
        }

    def sums(self, policy: Policy, examples: Sequence[Example]) -> list[ExampleSums]:
        texts, completions = flatten(examples)
        logprobs = policy.token_logprobs(completions).double()
        likelihoods = answer_sums(logprobs, texts)
        rewards = self.beta * answer_sums(logprobs - reference_logprobs(policy, completions), texts)
        measured = []
        for example, reward, likelihood in zip(examples, rewards, likelihoods, strict=True):
            good = 1 if example.desirable else 0
            sign = 2 * good - 1
            numbers = {
                "right": float(accuracy(sign * reward)), "answers": 1,
                "good_reward": good * float(reward), "good": good,
                "bad_reward": (1 - good) * float(reward), "bad": 1 - good,
                "good_nll": -good * float(likelihood), "good_tokens": good * sum(example.texts[0].learnt),
            }  # fmt: skip
            measured.append(ExampleSums(example.unit, numbers))
        return measured

    def reference_point(self, policy: Policy, texts: Sequence[Encoded]) -> Tensor:
        """Return z0 of a step, a scalar without gradient; 0 if the step has a single answer."""
        unrelated = mismatched(texts)
        if not unrelated:
            return torch.zeros((), dtype=torch.float64)
        completions = [text.completion() for text in unrelated]
        with torch.no_grad():
            ratios = policy.token_logprobs(completions).double() - reference_logprobs(policy, completions)
        return kto_reference_point(answer_sums(ratios, unrelated))


def mismatched(texts: Sequence[Encoded]) -> list[Encoded]:
    """Return each prompt with the answer of the next text that has a different prompt, or of the next one if none has.

    Answers are cut so that no text is longer than the longest of the step. A single text gives none.
    """
    longest = max(text.size for text in texts)
    unrelated = []
    for index, text in enumerate(texts):
        others = [*texts[index + 1 :], *texts[:index]]
        if others:
            other = next((one for one in others if one.prompt_ids != text.prompt_ids), others[0])
            room = longest - len(text.prompt_ids)
            unrelated.append(replace(text, token_ids=other.token_ids[:room], learnt=other.learnt[:room]))
    return unrelated
