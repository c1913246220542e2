"""An update's microbatches, shared out among learners."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch

from burnish.backends.ray.sampler import bare_prompt
from burnish.types import Microbatch


def share_out(batches: Sequence[Microbatch], parts: int) -> list[list[int]]:
    """Return the indices of each part's microbatches, in order: the largest go first, each to the part with least."""
    sizes = [_tokens(batch) for batch in batches]
    shares: list[list[int]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for index in sorted(range(len(batches)), key=lambda index: -sizes[index]):
        least = filled.index(min(filled))
        shares[least].append(index)
        filled[least] += sizes[index]
    return [sorted(share) for share in shares]


def deal(batches: Sequence[Microbatch], parts: int) -> list[list[tuple[int | None, Microbatch]]]:
    """Return each part's microbatches, as many for each, with their indices.

    In each round all parts get microbatches of about the same size, since they wait for one another. Where too few are
    left, a part gets the smallest one with weights of zero, which has no index.
    """
    sizes = [_tokens(batch) for batch in batches]
    order = sorted(range(len(batches)), key=lambda index: -sizes[index])
    smallest = batches[order[-1]]
    empty = replace(smallest, weights=torch.zeros_like(smallest.weights))
    dealt: list[list[tuple[int | None, Microbatch]]] = [[] for _ in range(parts)]
    for start in range(0, len(order), parts):
        for part in range(parts):
            index = order[start + part] if start + part < len(order) else None
            dealt[part].append((index, empty if index is None else batches[index]))
    return dealt


def _tokens(batch: Microbatch) -> int:
    """Return the tokens of a microbatch; neighbours' common prompt counts once, as it is computed once."""
    prompts = itertools.groupby(completion.prompt_ids for completion in batch.completions)
    return sum(len(one.token_ids) for one in batch.completions) + sum(len(ids) for ids, _ in prompts)


def bare_batch(batch: Microbatch) -> Microbatch:
    """Return a microbatch without what only rewards and reports read."""
    return replace(batch, completions=[replace(one, prompt=bare_prompt(one.prompt)) for one in batch.completions])
