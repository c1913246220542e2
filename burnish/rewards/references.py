"""References of a prompt: the only one, or the best of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from burnish.errors import BurnishError, InputError
from burnish.types import Completion


def best_reference(
    score: Callable[..., list[Any]],
    completions: Sequence[Completion],
    flags: Sequence[tuple[str, ...]],
    name: str,
) -> list[Any]:
    """Score each completion against each of its prompt's references; return the best value of each, not yet checked.

    ``score`` takes completions whose prompts have at most one reference, and ``flags``. The best of numbers per token
    is the sequence with the largest sum. A value that is not a finite number is returned, for the caller to refuse.
    """
    indices: list[int] = []
    pairs: list[Completion] = []
    for index, completion in enumerate(completions):
        for reference in completion.prompt.references or (None,):
            indices.append(index)
            pairs.append(replace(completion, prompt=replace(completion.prompt, reference=reference, alternatives=())))
    values = score(pairs, flags=[flags[index] for index in indices])
    if len(values) != len(pairs):
        raise BurnishError(
            f"reward '{name}' returned {len(values)} values for {len(pairs)} completions (one for each reference): a "
            "batch reward must return one number per completion"
        )
    own: list[list[Any]] = [[] for _ in completions]
    for index, value in zip(indices, values, strict=True):
        own[index].append(value)
    return [_best(each) for each in own]


def _best(values: Sequence[Any]) -> Any:
    for value in values:
        if not math.isfinite(_total(value)):
            return value
    return max(values, key=_total)


def _total(value: Any) -> float:
    """Return a number, or the sum of a sequence; NaN for anything else."""
    try:
        return float(np.asarray(value, dtype=np.float64).sum())
    except (TypeError, ValueError):
        return math.nan


def get_references(completion: Completion, reward: str) -> tuple[str, ...]:
    """Return the references of a completion's prompt. Raises InputError with the reward's name if one is missing."""
    references = completion.prompt.references
    if not references or not all(map(str.strip, references)):
        raise InputError(
            f"reward '{reward}' needs a reference, but prompt '{completion.prompt.id}' has none: "
            "give the task's prompts references, or remove this reward"
        )
    return references


def get_reference(completion: Completion, reward: str) -> str:
    """Return the reference, the first of several. Raises InputError as ``get_references`` does."""
    return get_references(completion, reward)[0]
