"""References of a prompt: the only one, or the best of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from burnish.errors import InputError, is_interrupt
from burnish.types import Completion


def each_reference(completions: Sequence[Completion]) -> tuple[list[int], list[Completion]]:
    """Return a completion for each reference of each prompt, as its only one, with the index that it comes from."""
    indices: list[int] = []
    pairs: list[Completion] = []
    for index, completion in enumerate(completions):
        for reference in completion.prompt.references or (None,):
            indices.append(index)
            pairs.append(replace(completion, prompt=replace(completion.prompt, reference=reference, alternatives=())))
    return indices, pairs


def best_values(indices: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Return the best value of each completion, not yet checked.

    ``values`` go with ``indices``, as ``each_reference`` gives them. The best of numbers per token is the sequence with
    the largest sum. None is never the best of several. Anything else that is not a finite number is returned, for the
    caller to refuse.
    """
    own: dict[int, list[Any]] = {index: [] for index in indices}
    for index, value in zip(indices, values, strict=True):
        own[index].append(value)
    return [_best([value for value in each if value is not None] or [None]) for each in own.values()]


def _best(values: Sequence[Any]) -> Any:
    for value in values:
        if not math.isfinite(_total(value)):
            return value
    return max(values, key=_total)


def _total(value: Any) -> float:
    """Return a number, the score of verl's form, or the sum of a sequence; NaN for anything else."""
    if type(value) is float:
        return value
    try:
        if isinstance(value, Mapping):
            value = value.get("score")
        return float(np.asarray(value, dtype=np.float64).sum())
    except BaseException as error:  # a value may raise anything
        if is_interrupt(error):
            raise
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
