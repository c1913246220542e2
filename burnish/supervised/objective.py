"""What is learnt from a row: an answer (supervised fine-tuning), or which of two answers is better (DPO, IPO).

An objective turns rows into examples, adds a step's gradient to the weights, and measures held-out examples. All numbers
of a step count over the whole step, so that its split into microbatches changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from burnish.algorithms.ops import sum_by_sequence
from burnish.algorithms.preference import dpo_loss, ipo_loss
from burnish.algorithms.table_gradients import adding_to_grad
from burnish.data.rows import Conversation, PreferencePair, PromptCompletion, TrainingRow
from burnish.errors import InputError
from burnish.evaluation.statistics import mean_of_units, perplexity_of_units
from burnish.protocols import LanguageModel, Policy
from burnish.supervised.encoding import Encoded, Encoder
from burnish.supervised.measurement import Metric, Seen
from burnish.training.batching import TokenBudget, microbatches
from burnish.types import Completion, SamplingParams

PLAIN = SamplingParams(max_new_tokens=1)
"""The whole softmax at temperature 1: what is learnt is the model's own distribution."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is drawn as one: a text to learn or to judge, or two answers to a prompt, the preferred one first.

    Attributes:
        margin: of a pair, where its row brings one.
        desirable: of a single answer that was judged.
    """

    unit: str
    texts: tuple[Encoded, ...]
    margin: float | None = None
    desirable: bool | None = None


P = TypeVar("P", contravariant=True)


class Objective(Protocol[P]):
    """The difference between the verbs; P is what it trains."""

    metrics: tuple[Metric, ...]

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        """Raises ValueError where the row cannot be used, InputError where no such row could."""
        ...

    def backward(self, policy: P, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        """Adds the gradient of the step's loss; returns the step's numbers, ``loss`` and ``tokens`` among them."""
        ...

    def seen(self, policy: P, examples: Sequence[Example]) -> list[Seen]:
        """What a measurement keeps of each example."""
        ...

    def findings(self, seen: Sequence[Seen], seed: int) -> Mapping[str, Any]:
        """What else is written about the measurement after training: file name -> JSON."""
        ...


class NoFindings:
    """Of an objective whose metrics say all."""

    def findings(self, seen: Sequence[Seen], seed: int) -> Mapping[str, Any]:
        return {}


class FineTuning(NoFindings):
    """Maximum likelihood: minus the mean log-probability of the answers' tokens; what is read is not learnt."""

    metrics: tuple[Metric, ...] = (
        Metric("truth_perplexity", "lower", "nll", "tokens", perplexity_of_units),
        Metric("truth_nll", "lower", "nll", "tokens", mean_of_units),
    )

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if isinstance(row, Conversation):
            return [Example(row.unit, (encoder.conversation(row),))]
        if not isinstance(row, PromptCompletion):
            raise InputError(
                "these rows are pairs or judged answers, for `burnish prefer`: `burnish sft` learns from texts"
            )
        if row.prompt:
            return [Example(row.unit, (encoder.text(row.unit, row.prompt, row.completion),))]
        return [Example(row.unit, (window,)) for window in encoder.windows(row)]

    def backward(self, policy: Policy, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        texts = [text for example in examples for text in example.texts]
        completions = [text.completion() for text in texts]
        tokens = sum(sum(text.learnt) for text in texts)
        total = 0.0
        for places in microbatches(completions, range(len(completions)), budget):
            with adding_to_grad():
                logprobs = policy.logprobs([completions[place] for place in places], PLAIN).logprobs.double()
            loss = -logprobs[learnt_tokens([texts[place] for place in places])].sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            del logprobs, loss  # the graph, whose nodes would pin down the memory that its tensors gave back
        return {"loss": total, "tokens": tokens}

    def seen(self, policy: Policy, examples: Sequence[Example]) -> list[Seen]:
        texts = [text for example in examples for text in example.texts]
        logprobs = policy.token_logprobs([text.completion() for text in texts]).double()
        sums = sum_by_sequence(torch.where(learnt_tokens(texts), logprobs, 0.0), lengths_of(texts))
        return [
            Seen(text.unit, {"nll": -float(total), "tokens": sum(text.learnt)})
            for text, total in zip(texts, sums, strict=True)
        ]


PairLoss = Callable[[Tensor, Tensor, float], Tensor]
PAIR_LOSSES: Mapping[str, PairLoss] = {"dpo": dpo_loss, "ipo": ipo_loss}


class Preferring(NoFindings):
    """DPO or IPO: the preferred answer gains on the other, measured against the model that training began from.

    A completion's implicit reward is ``beta (log pi - log pi_ref)``, summed over its tokens (arXiv 2305.18290, section 4);
    a pair's margin is that of the preferred answer less that of the other.
    """

    metrics: tuple[Metric, ...] = (
        Metric("preference_accuracy", "higher", "right", "pairs", mean_of_units),
        Metric("preference_margin", "higher", "margin", "pairs", mean_of_units),
        Metric("chosen_perplexity", "lower", "chosen_nll", "chosen_tokens", perplexity_of_units),
    )

    def __init__(self, loss: PairLoss, beta: float) -> None:
        self.loss, self.beta = loss, beta

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if not isinstance(row, PreferencePair):
            raise InputError(
                "these rows are texts: DPO and IPO learn from pairs (KTO from judged answers too), `burnish sft` from texts"
            )
        return [Example(row.unit, two_answers(encoder, row))]

    def backward(self, policy: Policy, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        total, margins = 0.0, []
        for part in whole_examples(examples, budget):
            texts, completions = flat(part)
            reference = policy_reference(policy, completions)
            with adding_to_grad():
                ratios = policy.logprobs(completions, PLAIN).logprobs.double() - reference
            chosen, rejected = sum_by_sequence(ratios, lengths_of(texts)).view(-1, 2).unbind(1)
            loss = self.loss(chosen, rejected, self.beta).sum() / len(examples)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            margins.append(self.beta * (chosen - rejected).detach())
            del ratios, chosen, rejected, loss
        margin = torch.cat(margins)
        return {
            "loss": total,
            "preference/accuracy": float(right(margin).mean()),
            "preference/margin": float(margin.mean()),
            "tokens": sum(len(text.token_ids) for example in examples for text in example.texts),
        }

    def seen(self, policy: Policy, examples: Sequence[Example]) -> list[Seen]:
        texts, completions = flat(examples)
        lengths = lengths_of(texts)
        logprobs = policy.token_logprobs(completions).double()
        likelihoods = sum_by_sequence(logprobs, lengths).view(-1, 2)
        ratios = sum_by_sequence(logprobs - policy_reference(policy, completions), lengths).view(-1, 2)
        margins = self.beta * (ratios[:, 0] - ratios[:, 1])
        return [
            Seen(
                example.unit,
                {
                    "right": float(right(margin)), "margin": float(margin), "pairs": 1,
                    "chosen_nll": -float(likelihood[0]), "chosen_tokens": len(example.texts[0].token_ids),
                },
            )
            for example, margin, likelihood in zip(examples, margins, likelihoods, strict=True)
        ]  # fmt: skip


def two_answers(encoder: Encoder, row: PreferencePair) -> tuple[Encoded, ...]:
    """The preferred answer and the other. Raises ValueError where they cannot be told apart or used."""
    texts = tuple(encoder.text(row.unit, row.prompt, answer) for answer in (row.chosen, row.rejected))
    if texts[0].token_ids == texts[1].token_ids:
        raise ValueError("chosen and rejected are the same up to batch.max_tokens, where they are cut")
    return texts


def right(margins: Tensor) -> Tensor:
    """1 where the preferred answer has the higher implicit reward, 0 where the lower, half where they are equal, as all
    are before training."""
    return (margins.sign() + 1) / 2


def flat(examples: Sequence[Example]) -> tuple[list[Encoded], list[Completion]]:
    """The examples' texts one after the other, as they are and as completions."""
    texts = [text for example in examples for text in example.texts]
    return texts, [text.completion() for text in texts]


def policy_reference(policy: Policy, completions: Sequence[Completion]) -> Tensor:
    """Log-probabilities [T] under the frozen model, float64."""
    reference: LanguageModel = policy.reference
    return reference.token_logprobs(completions).double()


def lengths_of(texts: Sequence[Encoded]) -> Tensor:
    return torch.tensor([len(text.token_ids) for text in texts])


def learnt_tokens(texts: Sequence[Encoded]) -> Tensor:
    """Which of the tokens [T] are learnt."""
    return torch.tensor([flag for text in texts for flag in text.learnt])


def whole_examples(examples: Sequence[Example], budget: TokenBudget) -> list[list[Example]]:
    """The examples in order, in microbatches of the usual size; the two answers of a pair, whose loss is one, stay
    together whatever their size."""
    found: list[list[Example]] = []
    filled = 0
    for example in examples:
        size = len(example.texts[0].prompt_ids) + sum(len(text.token_ids) for text in example.texts)
        if not found or filled + size > budget.usual:
            found.append([])
            filled = 0
        found[-1].append(example)
        filled += size
    return found
