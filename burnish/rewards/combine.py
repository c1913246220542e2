"""Several rewards as one: weighted parts, each checked to be one finite number a completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.errors import BurnishError, InputError
from burnish.rewards.registry import REWARDS, RewardFunction, reward_function
from burnish.types import Completion, Scores

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel
    from burnish.recipe import RewardSection


@dataclass(frozen=True, slots=True)
class Part:
    """One reward within a combination.

    Attributes:
        name: what metrics call it.
        function: the reward.
        weight: its factor in the total; a part of weight 0 is computed and logged, and does not count.
        options: keyword arguments for the function.
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


class Combination:
    """R(tau) = sum over the K parts of weight * part: the scorer of a run.

    Args:
        parts: at least one; names differ and weights are finite.
        reference_policy: the frozen policy, for rewards that name it.

    Raises:
        InputError: no part, two of one name, a weight that is no finite number, an option that the reward does not
            take, or a reward that needs the reference policy where none is given.
    """

    def __init__(self, parts: Sequence[Part], reference_policy: LanguageModel | None = None) -> None:
        if not parts:
            raise InputError("there is no reward: give at least one")
        names = [part.name for part in parts]
        for part in parts:
            if names.count(part.name) > 1:
                raise InputError(f"two rewards are called '{part.name}': give one of them another name")
            if isinstance(part.weight, bool) or not isinstance(part.weight, Real) or not math.isfinite(part.weight):
                raise InputError(f"reward '{part.name}': weight {part.weight!r} must be a finite number")
            if "reference_policy" in part.function.arguments and reference_policy is None:
                raise InputError(f"reward '{part.name}' asks the reference policy: pass reference_policy=...")
            part.function.check_options(part.options)
        self.parts = tuple(parts)
        self.reference_policy = reference_policy

    @classmethod
    def from_recipe(
        cls, sections: Sequence[RewardSection], reference_policy: LanguageModel | None = None
    ) -> Combination:
        """The combination that a recipe's ``[[reward]]`` tables describe. Raises InputError as the constructor does."""
        parts = [Part(section.part, REWARDS.get(section.use), section.weight, section.options) for section in sections]
        return cls(parts, reference_policy)

    def score(self, completions: Sequence[Completion]) -> Scores:
        """Total [N] and parts [N] each, float64, in the completions' order.

        Raises:
            BurnishError: a reward raised, or returned something other than one finite number a completion; the
                message names the reward, the prompt and what came back.
        """
        parts = {part.name: _values(part, completions, self.reference_policy) for part in self.parts}
        total = np.zeros(len(completions), dtype=np.float64)
        for part in self.parts:
            if part.weight != 0:
                total += float(part.weight) * parts[part.name]
        return Scores(total=total, parts=parts, weights={part.name: float(part.weight) for part in self.parts})


def combine(
    parts: Mapping[str | Callable[..., Any] | RewardFunction, float], reference_policy: LanguageModel | None = None
) -> Combination:
    """Weighted rewards as one scorer: ``combine({"bleu": 1.0, brevity: 0.2}).score(completions).total``.

    Args:
        parts: registered name, ``module:object`` or a reward function itself -> weight.
        reference_policy: the frozen policy, for rewards that name it.

    Raises:
        InputError: an unknown name, a function that is no reward, or what ``Combination`` refuses.
    """
    return Combination([_part(key, weight) for key, weight in parts.items()], reference_policy)


def _part(key: str | Callable[..., Any] | RewardFunction, weight: float) -> Part:
    if isinstance(key, str):
        return Part(key.rpartition(":")[2], REWARDS.get(key), weight)
    if isinstance(key, RewardFunction):
        return Part(key.name, key, weight)
    name = getattr(key, "__name__", type(key).__name__)
    return Part(name, reward_function(name, key), weight)


def _values(part: Part, completions: Sequence[Completion], reference_policy: LanguageModel | None) -> np.ndarray:
    """One part's finite numbers, [N]."""
    if not completions:
        return np.zeros(0, dtype=np.float64)
    if part.function.batch:
        values = _call(part, completions, reference_policy)
    else:
        # One at a time, so that an error can name its prompt.
        values = [_call(part, [completion], reference_policy)[0] for completion in completions]
    if len(values) != len(completions):
        raise BurnishError(
            f"reward '{part.name}' returned {len(values)} values for {len(completions)} completions "
            f"(from prompt '{completions[0].prompt.id}' on): a batch reward returns one number each, in order"
        )
    checked = [_number(part.name, value, completion) for value, completion in zip(values, completions, strict=True)]
    return np.array(checked, dtype=np.float64)


def _call(part: Part, completions: Sequence[Completion], reference_policy: LanguageModel | None) -> list[Any]:
    function = replace(part.function, function=_listing(part)) if part.function.batch else part.function
    try:
        return list(function(completions, reference_policy=reference_policy, **part.options))
    except BurnishError:
        # Says already what is wrong and how to mend it.
        raise
    except Exception as error:
        ids = list(dict.fromkeys(completion.prompt.id for completion in completions))
        where = f"prompt '{ids[0]}'" if len(ids) == 1 else f"a batch of prompts '{ids[0]}' to '{ids[-1]}'"
        raise BurnishError(f"reward '{part.name}' raised {type(error).__name__}: {error} on {where}") from error


def _listing(part: Part) -> Callable[..., list[Any]]:
    """The part's batch function, with a clear error where it returns no list."""

    def function(**arguments: Any) -> list[Any]:
        values = part.function.function(**arguments)
        try:
            if isinstance(values, str | bytes | Mapping):
                raise TypeError
            return list(values)
        except TypeError:
            raise BurnishError(
                f"reward '{part.name}' returned {_shown(values)}: a batch reward returns a list: a number a completion"
            ) from None

    return function


def _number(name: str, value: Any, completion: Completion) -> float:
    """A plain float of a number: int, float, bool, numpy scalar, tensor of no dimension."""
    where = f"reward '{name}' returned {_shown(value)} for prompt '{completion.prompt.id}'"
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0:
        raise BurnishError(f"{where}: token-level rewards are not supported yet; return one number a completion")
    if getattr(value, "ndim", None) == 0:
        # A numpy scalar or a tensor of no dimension.
        value = value.item()
    if not isinstance(value, Real):
        raise BurnishError(f"{where}: a reward is one number a completion")
    number = float(value)
    if not math.isfinite(number):
        raise BurnishError(f"{where}: a reward is a finite number; catch that case in the function")
    return number


def _shown(value: object) -> str:
    text = repr(value)
    return (text if len(text) <= 60 else text[:57] + "...") + f" ({type(value).__name__})"
