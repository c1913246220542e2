"""A step's cut into updates, and into microbatches by a budget of tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from burnish.protocols import Trainable
from burnish.types import Completion, Microbatch

ENOUGH_TOKENS = 1152
"""Larger microbatches do not make the matrix products faster, and take more memory."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Tokens in one forward and backward pass."""

    usual: int
    """Groups share a microbatch up to this many."""
    most: int
    """A single group larger than ``usual`` stays whole up to this many, since a cut would run its prompt twice."""

    @classmethod
    def fitting(cls, tokens: int) -> TokenBudget:
        """Return the budget where at most ``tokens`` fit into memory."""
        return cls(min(ENOUGH_TOKENS, tokens), max(tokens, 1))

    @classmethod
    def for_policy(cls, tokens: int | None, policy: Trainable) -> TokenBudget:
        """Return the budget of ``optimizer.tokens_per_microbatch``; None takes what fits this policy into memory."""
        return cls.fitting(policy.max_microbatch_tokens) if tokens is None else cls(tokens, tokens)


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def microbatches(completions: Sequence[Completion], indices: Sequence[int], budget: TokenBudget) -> list[list[int]]:
    """Return the indices of the trained completions, in order, cut into microbatches.

    Neighbouring completions of one prompt stay together where they fit, and the prompt counts once for all of them,
    since it is computed once. A completion larger than the budget is a microbatch of its own.
    """
    batches: list[list[int]] = []
    filled = 0
    for _, run in itertools.groupby(indices, lambda index: completions[index].prompt_ids):
        group = list(run)
        prompt = len(completions[group[0]].prompt_ids)
        whole = prompt + sum(len(completions[index].token_ids) for index in group)
        if batches and filled + whole <= budget.usual:
            batches[-1] += group
            filled += whole
            continue
        limit = budget.usual if whole > budget.most else whole
        filled = 0
        for index in group:
            length = len(completions[index].token_ids)
            if not filled or filled + length > limit:
                batches.append([])
                filled = prompt
            batches[-1].append(index)
            filled += length
    return batches


def split_by_tokens(completions: Sequence[Completion], indices: Sequence[int], parts: int) -> list[list[int]]:
    """Return at most ``parts`` consecutive shares of the indices, none empty, of about as many tokens each.

    A prompt counts once for its neighbouring completions, as in ``microbatches``.
    """
    if parts == 1 or not indices:
        return [list(indices)]
    ends, filled = [], 0
    for position, index in enumerate(indices):
        before = completions[indices[position - 1]].prompt_ids if position else None
        own = completions[index]
        filled += len(own.token_ids) + (0 if own.prompt_ids == before else len(own.prompt_ids))
        ends.append(filled)
    shares: list[list[int]] = [[] for _ in range(parts)]
    for index, end, begin in zip(indices, ends, [0, *ends], strict=False):
        shares[min(parts - 1, (begin + end) * parts // (2 * filled))].append(index)
    return [share for share in shares if share]


def update_indices(prompts: int, group: int, *, epochs: int, minibatches: int, seed: Sequence[int]) -> list[list[int]]:
    """Return, for each update of a step, the indices of its completions among the P*G.

    In each epoch the prompts are shuffled, as a function of ``seed``, and cut into minibatches whose sizes differ by at
    most one; the samples of a prompt stay together except where a cut goes through them.
    """
    count = prompts * group
    updates = []
    for epoch in range(epochs):
        order = _generator(*seed, epoch).permutation(prompts) if minibatches > 1 else np.arange(prompts)
        indices = (order[:, None] * group + np.arange(group)).flatten()
        bounds = [count * number // minibatches for number in range(minibatches + 1)]
        updates += [sorted(indices[begin:end].tolist()) for begin, end in itertools.pairwise(bounds)]
    return updates


def trained_indices(has_gradient: Tensor, indices: Sequence[int]) -> list[int]:
    """Return the completions of an update that have a gradient, by ``has_gradient`` [N] of the whole step.

    At least one is returned, so that the update has metrics and a gradient of zeros.
    """
    return [index for index in indices if has_gradient[index]] or list(indices[:1])


def evaluate_tokens(
    evaluate: Callable[[Sequence[Completion]], Tensor],
    completions: Sequence[Completion],
    lengths: Tensor,
    batches: Sequence[Sequence[int]],
) -> Tensor:
    """Return the number that ``evaluate`` computes for each token of all completions, [T] float64, without gradient.

    ``batches`` are the indices of completions that are evaluated together. Tokens of completions in no batch are
    not-a-number, so that nothing uses them unnoticed.
    """
    pieces = list(torch.split(torch.full((int(lengths.sum()),), math.nan, dtype=torch.float64), lengths.tolist()))
    with torch.no_grad():
        for indices in batches:
            values = evaluate([completions[index] for index in indices]).double()
            parts = torch.split(values, lengths[list(indices)].tolist())
            for index, part in zip(indices, parts, strict=True):
                pieces[index] = part
    return torch.cat(pieces)


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Per-token tensors of a step, [T] as in ``Microbatch``, and the completions' lengths [N]."""

    completions: Sequence[Completion]
    lengths: Tensor
    advantages: Tensor
    sampler_logprobs: Tensor
    reference_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None

    def select(self, indices: Sequence[int], weights: Tensor) -> Microbatch:
        """Return the microbatch of these completions; ``weights`` [N] are per token of each, in its update's loss."""
        chosen, sizes = torch.tensor(indices), self.lengths.tolist()

        def tokens(values: Tensor) -> Tensor:
            pieces = torch.split(values, sizes)
            return torch.cat([pieces[index] for index in indices])

        def optional(values: Tensor | None) -> Tensor | None:
            return None if values is None else tokens(values)

        return Microbatch(
            completions=[self.completions[index] for index in indices],
            advantages=tokens(self.advantages),
            weights=weights[chosen].repeat_interleave(self.lengths[chosen]),
            sampler_logprobs=tokens(self.sampler_logprobs),
            reference_logprobs=optional(self.reference_logprobs),
            old_logprobs=optional(self.old_logprobs),
            old_values=optional(self.old_values),
            returns=optional(self.returns),
        )
