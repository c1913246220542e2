"""How a step's completions are cut into microbatches: by tokens, each prompt counted once for the completions behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.types import Completion

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
