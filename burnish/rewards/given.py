"""Rewards given in Python: one, a list, or a mapping to weights, of names and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from burnish.errors import InputError
from burnish.rewards.forms import distinct_names
from burnish.rewards.part import is_finite
from burnish.rewards.registry import REWARDS, reward_function

RewardName = str | Callable[..., Any]
Rewards = RewardName | Sequence[RewardName] | Mapping[RewardName, float]
_GIVEN: set[str] = set()
"""Names under which this process registered functions that were given; another function may replace them."""


def register_given(rewards: Rewards | None) -> list[tuple[str, float]]:
    """Return the names of the rewards in a recipe, with their weights, and register the functions among them.

    Functions of one name are told apart by numbers. Raises InputError if something is not a reward, or a function has
    the name of a registered one.
    """
    if rewards is None:
        return []
    if isinstance(rewards, str) or callable(rewards):
        rewards = [rewards]
    if not isinstance(rewards, Mapping | Sequence):
        raise InputError(
            f"rewards is of type {type(rewards).__name__}: give a reward function, a list of them, or a mapping to "
            "weights"
        )
    pairs = list(rewards.items()) if isinstance(rewards, Mapping) else [(key, 1.0) for key in rewards]
    for _, weight in pairs:
        if not is_finite(weight):
            raise InputError(f"rewards: a weight of type {type(weight).__name__} must be a finite number")
    functions = [key for key, _ in pairs if not isinstance(key, str)]
    taken = [key for key, _ in pairs if isinstance(key, str)]
    names = iter(distinct_names(functions, taken))
    return [(key if isinstance(key, str) else _register(next(names), key), float(weight)) for key, weight in pairs]


def _register(name: str, function: object) -> str:
    if name in REWARDS and name not in _GIVEN and REWARDS.get(name).function is function:
        return name  # by the decorator
    REWARDS.add(name, reward_function(name, function), replace=name in _GIVEN)
    _GIVEN.add(name)
    return name
