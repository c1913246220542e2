"""Supervised fine-tuning by maximum likelihood."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.algorithms.table_gradients import adding_to_grad
from burnish.data.rows import Conversation, PromptCompletion, TrainingRow
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
    answer_sums,
    flatten,
    learnt_mask,
)  # fmt: skip
from burnish.training.batching import TokenBudget, microbatches


class FineTuning(Objective[Policy]):
    """Maximum likelihood: the negative mean log-probability of the learnt tokens of a step. Prompts are not learnt."""

    metrics: tuple[SumMetric, ...] = (
        SumMetric("truth_perplexity", "lower", "nll", "tokens", perplexity_of_units),
        SumMetric("truth_nll", "lower", "nll", "tokens", mean_of_units),
    )

    def examples(self, encoder: Encoder, row: TrainingRow) -> list[Example]:
        if isinstance(row, Conversation):
            return [Example(row.unit, tuple(encoder.conversation(row)))]
        if not isinstance(row, PromptCompletion):
            raise InputError(
                "these rows are pairs or labelled answers: `burnish sft` learns from texts; "
                "use `burnish prefer` for these"
            )
        if row.prompt:
            return [Example(row.unit, (encoder.text(row.unit, row.prompt, row.completion),))]
        return [Example(row.unit, (window,)) for window in encoder.windows(row)]

    def backward(self, policy: Policy, examples: Sequence[Example], budget: TokenBudget) -> dict[str, float]:
        texts, completions = flatten(examples)
        tokens = sum(sum(text.learnt) for text in texts)
        total = 0.0
        for indices in microbatches(completions, range(len(completions)), budget):
            with adding_to_grad():
                logprobs = policy.logprobs([completions[index] for index in indices], PLAIN).logprobs.double()
            loss = -logprobs[learnt_mask([texts[index] for index in indices])].sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            del logprobs, loss  # frees the graph before the next one is built
        return {"loss": total, "tokens": tokens}

    def sums(self, policy: Policy, examples: Sequence[Example]) -> list[ExampleSums]:
        texts, completions = flatten(examples)
        logprobs = policy.token_logprobs(completions).double()
        sums = answer_sums(logprobs, texts)
        return [
            ExampleSums(text.unit, {"nll": -float(total), "tokens": sum(text.learnt)})
            for text, total in zip(texts, sums, strict=True)
        ]
