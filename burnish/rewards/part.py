"""One weighted reward of a combination: its settings, its checked values, and their normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch

from burnish.algorithms.reward_shaping import rank_in_group, standardise
from burnish.errors import BurnishError, InputError
from burnish.rewards.registry import RewardFunction
from burnish.rewards.token_credit import Credit
from burnish.types import Completion

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel


class WeightSchedule(Protocol):
    """A factor of a weight that depends on the step."""

    def at(self, step: int | None) -> float:
        """Return the factor at a step, counted from 1; None means after the last step."""


Normalisation = Literal["group", "batch", "rank", "running"]
"""How a part's values are normalised in training.

"group", "batch" and "running" subtract the mean and divide by the standard deviation: those of the prompt's
completions, of the step's, or of all earlier steps'. If all values of a group or step are equal, they become 0. "rank"
is the rank among the prompt's completions, from -1 to 1.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One reward of a combination.

    Attributes:
        name: its name in metrics.
        weight: factor in the total; a part of weight 0 is computed and logged, but does not count.
        options: keyword arguments for the function.
        clip: lowest and highest value; values outside are replaced by the nearer of the two.
        gate: least value at which the other parts give credit.
        normalise: in training, the comparison that replaces the value: see ``Normalisation``.
        schedule: factor of the weight, by step.
        credit: in training, what earns the part: the completion, or each of its sentences or tokens.
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    clip: tuple[float, float] | None = None
    gate: float | None = None
    normalise: Normalisation | None = None
    schedule: WeightSchedule | None = None
    credit: Credit = "completion"

    def weight_at(self, step: int | None) -> float:
        """Return the weight at a step, counted from 1, or after the last step."""
        return float(self.weight) * (1.0 if self.schedule is None else self.schedule.at(step))

    def clipped(self, values: np.ndarray) -> np.ndarray:
        """Return values [N] limited to the part's clip."""
        return values if self.clip is None else np.clip(values, *self.clip)

    def check(self) -> None:
        """Raise InputError if a setting is not valid, whatever the other parts."""
        for name, value in (("weight", self.weight), ("gate", self.gate), *(("clip", end) for end in self.clip or ())):
            if name == "gate" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"reward '{self.name}': {name} = {value!r}: must be a finite number")
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise InputError(
                f"reward '{self.name}': clip = {self.clip!r}: must be two numbers, the first below the second"
            )
        for name, chosen, choices in (
            ("normalise", self.normalise, (None, *get_args(Normalisation))),
            ("credit", self.credit, get_args(Credit)),
        ):
            if chosen not in choices:
                known = ", ".join(f'"{choice}"' for choice in choices if choice)
                raise InputError(f"reward '{self.name}': {name} = {chosen!r}: must be one of {known}")
        self.function.check_options(self.options)
        self.function.check_credit(self.credit)

    def values(
        self,
        completions: Sequence[Completion],
        reference_policy: LanguageModel | None,
        flags: Sequence[tuple[str, ...]] | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """Return the part's finite values [N], and their split by token, N arrays [|o_i|], if the function gives one.

        Raises BurnishError if the function raises, or does not return finite numbers, one per completion or per token.
        """
        if not completions:
            return np.zeros(0, dtype=np.float64), None
        if self.function.batch:
            returned = self._call(completions, reference_policy, flags)
        else:
            # One at a time, so that an error can name its prompt.
            own_flags = [None] * len(completions) if flags is None else [[own] for own in flags]
            returned = [
                self._call([completion], reference_policy, own)[0]
                for completion, own in zip(completions, own_flags, strict=True)
            ]
        if len(returned) != len(completions):
            raise BurnishError(
                f"reward '{self.name}' returned {len(returned)} values for {len(completions)} completions (prompt "
                f"'{completions[0].prompt.id}' is the first): a batch reward must return one number per completion"
            )
        are_sequences = [_is_sequence(value) for value in returned]
        pairs = list(zip(returned, completions, strict=True))
        if not any(are_sequences):
            return np.array([_number(self.name, value, completion) for value, completion in pairs]), None
        if not all(are_sequences):
            some, other = (completions[are_sequences.index(kind)].prompt.id for kind in (True, False))
            raise BurnishError(
                f"reward '{self.name}' returned a sequence for prompt '{some}' but not for prompt '{other}': return "
                "numbers per token for all completions, or for none"
            )
        if self.clip is not None:
            raise BurnishError(
                f"reward '{self.name}' returned numbers per token, but clip limits whole completions: remove clip, and "
                "limit the numbers in the function"
            )
        per_token = [_numbers(self.name, value, completion) for value, completion in pairs]
        return np.array([row.sum() for row in per_token], dtype=np.float64), per_token

    def _call(
        self,
        completions: Sequence[Completion],
        reference_policy: LanguageModel | None,
        flags: Sequence[tuple[str, ...]] | None,
    ) -> list[Any]:
        function = replace(self.function, function=_listing(self)) if self.function.batch else self.function
        try:
            return list(function(completions, reference_policy=reference_policy, flags=flags, **self.options))
        except BurnishError:
            # It already says what is wrong and what to do.
            raise
        except Exception as error:
            ids = list(dict.fromkeys(completion.prompt.id for completion in completions))
            where = f"prompt '{ids[0]}'" if len(ids) == 1 else f"a batch of prompts '{ids[0]}' to '{ids[-1]}'"
            raise BurnishError(f"reward '{self.name}' raised {type(error).__name__}: {error} on {where}") from error


def normalise(by: Normalisation, values: np.ndarray, completions: Sequence[Completion]) -> np.ndarray:
    """Return values [N] normalised by "group", "batch" or "rank"."""
    groups: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        groups.setdefault("" if by == "batch" else completion.prompt.id, []).append(index)
    result = np.zeros_like(values)
    scale = rank_in_group if by == "rank" else standardise
    for indices in groups.values():
        result[indices] = scale(torch.from_numpy(values[indices])).numpy()
    return result


def _listing(part: Part) -> Callable[..., list[Any]]:
    """Return the part's batch function, with a clear error if it does not return a list."""

    def function(**arguments: Any) -> list[Any]:
        values = part.function.function(**arguments)
        try:
            if isinstance(values, str | bytes | Mapping):
                raise TypeError
            return list(values)
        except TypeError:
            raise BurnishError(
                f"reward '{part.name}' returned {_shown(values)}: a batch reward must return a list with one number "
                "per completion"
            ) from None

    return function


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _numbers(name: str, values: Any, completion: Completion) -> np.ndarray:
    """Return one finite number per token, [|o_i|]."""
    numbers, tokens = list(values), len(completion.token_ids)
    if len(numbers) != tokens or any(_is_sequence(value) for value in numbers):
        raise BurnishError(
            f"reward '{name}' returned {_shown(values)} for prompt '{completion.prompt.id}': {len(numbers)} values for "
            f"{tokens} tokens; a sequence must have one number per token of completion.token_ids"
        )
    return np.array([_number(name, value, completion) for value in numbers], dtype=np.float64)


def _number(name: str, value: Any, completion: Completion) -> float:
    """Return a number (int, float, bool, numpy scalar, tensor without dimensions) as a float."""
    where = f"reward '{name}' returned {_shown(value)} for prompt '{completion.prompt.id}'"
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, Real):
        raise BurnishError(f"{where}: a reward must be one number per completion")
    number = float(value)
    if not math.isfinite(number):
        raise BurnishError(f"{where}: a reward must be finite; handle that case in the function")
    return number


def _shown(value: object) -> str:
    text = repr(value)
    return (text if len(text) <= 60 else text[:57] + "...") + f" ({type(value).__name__})"
