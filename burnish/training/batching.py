"""How a step's completions are cut: into updates, and each update into microbatches, by tokens, each prompt counted once for
the completions behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from burnish.types import Completion, Microbatch

ENOUGH_TOKENS = 1152
"""Larger microbatches make the products no faster, and take memory."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """Tokens in one backward pass.

    Attributes:
        usual: groups are put together up to this many.
        most: a group that alone is larger stays whole up to this many, since cutting it means to run its prompt twice.
    """

    usual: int
    most: int

    @classmethod
    def fitting(cls, tokens: int) -> TokenBudget:
        """Where ``tokens`` fit into the memory."""
        return cls(min(ENOUGH_TOKENS, tokens), max(tokens, 1))


def microbatches(completions: Sequence[Completion], places: Sequence[int], budget: TokenBudget) -> list[list[int]]:
    """The places, in order, cut into microbatches. Completions of one prompt that stand together stay together where they
    fit; a single completion larger than the budget is a microbatch by itself.

    Args:
        places: which of the completions are trained.
    """
    found: list[list[int]] = []
    filled = 0
    for group in _groups(completions, places):
        prompt = len(completions[group[0]].prompt_ids)
        whole = prompt + sum(len(completions[place].token_ids) for place in group)
        if found and filled + whole <= budget.usual:
            found[-1] += group
            filled += whole
            continue
        limit = budget.usual if whole > budget.most else whole
        filled = 0
        for place in group:
            length = len(completions[place].token_ids)
            if not filled or filled + length > limit:
                found.append([])
                filled = prompt
            found[-1].append(place)
            filled += length
    return found


def _groups(completions: Sequence[Completion], places: Sequence[int]) -> list[list[int]]:
    """Neighbours with one prompt."""
    found: list[list[int]] = []
    for place in places:
        if found and completions[found[-1][0]].prompt_ids == completions[place].prompt_ids:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def update_places(prompts: int, group: int, *, epochs: int, minibatches: int, seed: Sequence[int]) -> list[list[int]]:
    """The completions that each update of a step is made of, by their places among the P*G; one list an update.

    In each epoch the prompts are shuffled, a function of ``seed``, and cut into minibatches whose sizes differ by one at
    most; the samples of a prompt stay together but where a cut goes through them.
    """
    count = prompts * group
    found = []
    for epoch in range(epochs):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*seed, epoch])))
        order = generator.permutation(prompts) if minibatches > 1 else np.arange(prompts)
        places = (order[:, None] * group + np.arange(group)).flatten()
        bounds = [count * number // minibatches for number in range(minibatches + 1)]
        found += [sorted(places[begin:end].tolist()) for begin, end in itertools.pairwise(bounds)]
    return found


def trained_places(advantages: Tensor, places: Sequence[int], *, every: bool) -> list[int]:
    """Which completions of an update are run for the gradient: all, or those whose advantage is not zero, where a loss that
    is a multiple of the advantage is all there is. At least one, so that there are metrics, and a gradient of zeros.

    Args:
        advantages: [N], of the whole step; 0 where that of every token is.
        places: of the update's completions.
    """
    return [place for place in places if every or advantages[place] != 0] or list(places[:1])


def asked_of(
    ask: Callable[[Sequence[Completion]], Tensor],
    completions: Sequence[Completion],
    lengths: Tensor,
    cut: Sequence[Sequence[int]],
) -> Tensor:
    """What a model says of each token [T] of the completions in ``cut``, whose places it lists, before the first update;
    not-a-number where a token belongs to none of them, since nothing may ask for it. No gradient."""
    found = list(torch.split(torch.full((int(lengths.sum()),), math.nan, dtype=torch.float64), lengths.tolist()))
    with torch.no_grad():
        for places in cut:
            answer = ask([completions[place] for place in places]).double()
            pieces = torch.split(answer, lengths[list(places)].tolist())
            for place, piece in zip(places, pieces, strict=True):
                found[place] = piece
    return torch.cat(found)


def collate(
    completions: Sequence[Completion],
    lengths: Tensor,
    advantages: Tensor,
    weights: Tensor,
    sampler_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    old_logprobs: Tensor | None,
    cut: Sequence[Sequence[int]],
    *,
    old_values: Tensor | None = None,
    returns: Tensor | None = None,
) -> list[Microbatch]:
    """One batch for each microbatch of ``cut``, which lists places among the completions; ``weights`` [N] become per-token
    ones, as all else is [T]."""
    sizes = lengths.tolist()

    def chosen_of(values: Tensor, places: Sequence[int]) -> Tensor:
        pieces = torch.split(values, sizes)
        return torch.cat([pieces[place] for place in places])

    def if_any(values: Tensor | None, places: Sequence[int]) -> Tensor | None:
        return None if values is None else chosen_of(values, places)

    batches = []
    for places in cut:
        chosen = torch.tensor(places)
        repeats = lengths[chosen]
        batches.append(
            Microbatch(
                completions=[completions[place] for place in places],
                advantages=chosen_of(advantages, places),
                weights=weights[chosen].repeat_interleave(repeats),
                sampler_logprobs=chosen_of(sampler_logprobs, places),
                reference_logprobs=if_any(reference_logprobs, places),
                old_logprobs=if_any(old_logprobs, places),
                old_values=if_any(old_values, places),
                returns=if_any(returns, places),
            )
        )
    return batches
