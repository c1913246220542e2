"""Several rewards as one: weighted parts, each checked to be one finite number a completion.

What a part's number r of a completion becomes, in this order: cut to ``clip``; in training, normalised among the prompt's
or the step's completions; times the weight, which may be on a schedule. Then gates: where another part has a ``gate`` and
its own number, as the function returned it, is below that, this part's credit counts only if it is negative. So a closed
gate never raises a reward. The sum over the parts is R(tau). In training a part whose ``credit`` is finer than the
completion is dealt out to tokens besides: see ``rewards.token_credit``. What a part was in earlier steps is all that a
combination remembers, and only where a part is normalised by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from burnish.algorithms.shaping import Moments, by_running_moments
from burnish.errors import BurnishError, InputError
from burnish.rewards.normalise import Among, among_companions
from burnish.rewards.registry import REWARDS, RewardFunction, reward_function
from burnish.rewards.token_credit import Credit, Decode, earned
from burnish.types import Completion, Scores, TokenRewards

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel
    from burnish.recipe.sections import MetricSection, RewardSection, Schedule


@dataclass(frozen=True, slots=True)
class Part:
    """One reward within a combination.

    Attributes:
        name: what metrics call it.
        function: the reward.
        weight: its factor in the total; a part of weight 0 is computed and logged, and does not count.
        options: keyword arguments for the function.
        clip: low and high; what is outside counts as the nearer of the two.
        gate: the least this part must be for the other parts to give credit.
        normalise: whether, in training, the mean is taken off and the standard deviation divided out: those of the prompt's
            completions ("group"), of the step's ("batch"), or of all earlier steps' ("running"); where a group or a step has
            one value throughout, it becomes 0. Or its rank among the prompt's completions, from -1 to 1 ("rank").
        schedule: a factor of the weight, by step.
        credit: what earns the part, in training: the completion, or each of its sentences or tokens.
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    clip: tuple[float, float] | None = None
    gate: float | None = None
    normalise: Among | None = None
    schedule: Schedule | None = None
    credit: Credit = "completion"

    def weight_at(self, step: int | None) -> float:
        """The weight at a step (counted from 1), or after the last."""
        return float(self.weight) * (1.0 if self.schedule is None else self.schedule.at(step))


class Combination:
    """R(tau) = sum over the K parts of weight * part, clipped, normalised and gated as asked: the scorer of a run.

    Args:
        parts: at least one; names differ and weights are finite.
        reference_policy: the frozen policy, for rewards that name it.
        decode: token ids to text, for parts whose credit is finer than the completion.

    Raises:
        InputError: no part, two of one name, a weight, gate or clip that is no finite number, a gate with no other part,
            an option or a credit that the reward does not take, or a reward that needs the reference policy where none
            is given.
    """

    def __init__(
        self, parts: Sequence[Part], reference_policy: LanguageModel | None = None, *, decode: Decode | None = None
    ) -> None:
        if not parts:
            raise InputError("there is no reward: give at least one")
        names = [part.name for part in parts]
        for part in parts:
            if names.count(part.name) > 1:
                raise InputError(f"two rewards are called '{part.name}': give one of them another name")
            _check_numbers(part)
            if part.gate is not None and len(parts) == 1:
                raise InputError(f"reward '{part.name}': gate = {part.gate} holds back other parts, and there is none")
            if "reference_policy" in part.function.arguments and reference_policy is None:
                raise InputError(f"reward '{part.name}' asks the reference policy: pass reference_policy=...")
            part.function.check_options(part.options)
            _check_credit(part, parts)
        self.decode = decode
        self.parts = tuple(parts)
        self.reference_policy = reference_policy
        self.moments = {part.name: Moments() for part in parts if part.normalise == "running"}

    @classmethod
    def from_recipe(
        cls,
        sections: Sequence[RewardSection],
        reference_policy: LanguageModel | None = None,
        *,
        decode: Decode | None = None,
    ) -> Combination:
        """The combination that a recipe's ``[[reward]]`` tables describe. Raises InputError as the constructor does."""
        parts = [
            Part(
                section.part, REWARDS.get(section.use), section.weight, section.options,
                section.clip, section.gate, section.normalise, section.schedule, section.credit,
            )
            for section in sections
        ]  # fmt: skip
        return cls(parts, reference_policy, decode=decode)

    @classmethod
    def of_metrics(
        cls, sections: Sequence[MetricSection], reference_policy: LanguageModel | None = None
    ) -> Combination | None:
        """What measures a recipe's ``evaluation.metrics``, by its parts; None where there are none. Raises InputError as
        the constructor does."""
        parts = [Part(section.part, REWARDS.get(section.use), 1.0, section.options) for section in sections]
        return cls(parts, reference_policy) if parts else None

    def score(self, completions: Sequence[Completion], *, step: int | None = None) -> Scores:
        """Total [N] and parts [N] each, float64, in the completions' order.

        Args:
            step: of training, counted from 1. None, as in a held-out measurement: no part is normalised, since that would
                make the mean 0 before and after, weights are those after the last step, and nothing is dealt out.

        Raises:
            BurnishError: a reward raised, or returned something other than one finite number a completion; the
                message names the reward, the prompt and what came back.
        """
        parts: dict[str, np.ndarray] = {}
        own: dict[str, list[np.ndarray] | None] = {}
        for part in self.parts:
            parts[part.name], own[part.name] = _values(part, completions, self.reference_policy)
        weights = {part.name: part.weight_at(step) for part in self.parts}
        clipped = {part.name: _cut(part, parts[part.name]) for part in self.parts}
        plain = self._gated_sum(clipped, parts, weights)
        passed = {part.name: parts[part.name] >= part.gate for part in self.parts if part.gate is not None}
        scheduled = tuple(part.name for part in self.parts if part.schedule is not None)
        found = Scores(plain, parts, weights, passed=passed, scheduled=scheduled)
        if step is None:
            return found
        if all(part.normalise is None for part in self.parts):
            return replace(found, token_rewards=self._dealt(completions, clipped, own, weights))
        normalised = {part.name: self._normalised(part, clipped[part.name], completions) for part in self.parts}
        tokens = self._dealt(completions, normalised, own, weights)
        return replace(
            found, total=self._gated_sum(normalised, parts, weights), unnormalised=plain, token_rewards=tokens
        )

    def update_state(self, scores: Scores) -> None:
        """Takes a step's rewards into what later steps' are normalised by; before, they were compared with earlier ones."""
        for part in self.parts:
            if part.name in self.moments:
                values = _cut(part, np.asarray(scores.parts[part.name]))
                self.moments[part.name] = self.moments[part.name].after(torch.from_numpy(values))

    @property
    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps: count, mean and squares of each part that is normalised by them."""
        return {name: [found.count, found.mean, found.squares] for name, found in self.moments.items()}

    @state.setter
    def state(self, kept: Mapping[str, Sequence[float]]) -> None:
        found = {name: [float(number) for number in kept[name]] for name in self.moments}
        for name, numbers in found.items():
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or numbers[0] < 0 or numbers[2] < 0:
                raise InputError(f"what reward '{name}' was in earlier steps is {numbers}: no count, mean and squares")
        self.moments = {name: Moments(*numbers) for name, numbers in found.items()}

    def _normalised(self, part: Part, values: np.ndarray, completions: Sequence[Completion]) -> np.ndarray:
        if part.normalise is None:
            return values
        if part.normalise == "running":
            return by_running_moments(torch.from_numpy(values), self.moments[part.name]).numpy()
        return among_companions(part.normalise, values, completions)

    def _dealt(
        self,
        completions: Sequence[Completion],
        values: Mapping[str, np.ndarray],
        own: Mapping[str, list[np.ndarray] | None],
        weights: Mapping[str, float],
    ) -> TokenRewards | None:
        """Which token earned what; None where no part's credit is finer than the completion.

        Args:
            own: what a part's function said of tokens itself.
        """
        counted = [part for part in self.parts if weights[part.name] != 0]
        for part in counted:
            if own[part.name] is not None and part.credit != "token":
                raise BurnishError(
                    f"reward '{part.name}' returned a number a token: set credit = \"token\" in its [[reward]] table, or "
                    "return one number a completion"
                )
        finer = [part for part in counted if part.credit != "completion"]
        if not finer:
            return None
        others = {part.name: 0.0 if part in finer else weights[part.name] for part in self.parts}
        gained = [np.zeros(len(completion.token_ids)) for completion in completions]
        for part in finer:
            pieces = own[part.name] or self._earned(part, completions, values[part.name])
            for row, piece in zip(gained, pieces, strict=True):
                row += weights[part.name] * piece
        return TokenRewards(self._gated_sum(values, values, others), tuple(gained))

    def _earned(self, part: Part, completions: Sequence[Completion], values: np.ndarray) -> list[np.ndarray]:
        if self.decode is None:
            raise InputError(f"reward '{part.name}': credit = \"{part.credit}\" reads tokens: pass decode=...")

        def ask(begun: Sequence[Completion]) -> np.ndarray:
            try:
                found, own = _values(part, begun, self.reference_policy)
            except BurnishError as error:
                raise type(error)(
                    f'{error} (asked about a completion\'s beginning, or about no text, for credit = "{part.credit}")'
                ) from error
            if own is not None:
                raise BurnishError(f"reward '{part.name}' returned a number for one text and a sequence for another")
            return _cut(part, found)

        return earned(completions, values, part.credit, self.decode, ask)

    def _gated_sum(
        self, values: Mapping[str, np.ndarray], parts: Mapping[str, np.ndarray], weights: Mapping[str, float]
    ) -> np.ndarray:
        """Weighted values [N], without the credit that the gates, which look at ``parts``, hold back."""
        total = np.zeros_like(next(iter(values.values())))
        for part in self.parts:
            if weights[part.name] == 0:
                continue
            credit = weights[part.name] * values[part.name]
            for other in self.parts:
                if other.gate is not None and other is not part:
                    credit = np.where(parts[other.name] >= other.gate, credit, np.minimum(credit, 0.0))
            total += credit
        return total


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


def _check_numbers(part: Part) -> None:
    """Raises InputError where a number of a part is none, not finite, or out of order."""
    for name, value in (("weight", part.weight), ("gate", part.gate), *(("clip", end) for end in part.clip or ())):
        if name == "gate" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InputError(f"reward '{part.name}': {name} {value!r} must be a finite number")
    if part.clip is not None and not (len(part.clip) == 2 and part.clip[0] < part.clip[1]):
        raise InputError(f"reward '{part.name}': clip {part.clip!r} must be two numbers, the first below the second")
    if part.normalise is not None and part.normalise not in get_args(Among):
        known = ", ".join(f'"{name}"' for name in get_args(Among))
        raise InputError(f"reward '{part.name}': normalise = {part.normalise!r}: must be {known} or None")


def _check_credit(part: Part, parts: Sequence[Part]) -> None:
    """Raises InputError where a part cannot be dealt out to tokens."""
    if part.credit not in ("completion", "sentence", "token"):
        raise InputError(
            f'reward \'{part.name}\': credit = {part.credit!r}: must be "completion", "sentence" or "token"'
        )
    if part.credit == "completion":
        return
    part.function.check_credit(part.credit)
    if part.normalise is not None or any(other.gate is not None for other in parts):
        raise InputError(
            f"reward '{part.name}': credit = \"{part.credit}\" goes neither with its own normalise nor with a gate, which "
            "compare or judge whole completions: leave one of them out"
        )


def _cut(part: Part, values: np.ndarray) -> np.ndarray:
    """Values [N] within the part's clip."""
    return values if part.clip is None else np.clip(values, *part.clip)


def _values(
    part: Part, completions: Sequence[Completion], reference_policy: LanguageModel | None
) -> tuple[np.ndarray, list[np.ndarray] | None]:
    """One part's finite numbers, [N], and where its function returned one a token these too, [|o_i|] each, which add up
    to those."""
    if not completions:
        return np.zeros(0, dtype=np.float64), None
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
    sequences = [_is_sequence(value) for value in values]
    pairs = list(zip(values, completions, strict=True))
    if not any(sequences):
        return np.array([_number(part.name, value, completion) for value, completion in pairs], dtype=np.float64), None
    if not all(sequences):
        raise BurnishError(
            f"reward '{part.name}' returned a sequence for prompt '{completions[sequences.index(True)].prompt.id}' and none "
            f"for prompt '{completions[sequences.index(False)].prompt.id}': return a number a token for all, or for none"
        )
    if part.clip is not None:
        raise BurnishError(
            f"reward '{part.name}' returned a number a token, and clip cuts whole completions' numbers: leave clip out, and "
            "cut in the function"
        )
    own = [_numbers(part.name, value, completion) for value, completion in pairs]
    return np.array([row.sum() for row in own], dtype=np.float64), own


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _numbers(name: str, values: Any, completion: Completion) -> np.ndarray:
    """One finite number a token, [|o_i|]."""
    found, wanted = list(values), len(completion.token_ids)
    if len(found) != wanted or any(_is_sequence(value) for value in found):
        raise BurnishError(
            f"reward '{name}' returned {_shown(values)} for prompt '{completion.prompt.id}': {len(found)} values for "
            f"{wanted} tokens; a sequence has one number for each of completion.token_ids"
        )
    return np.array([_number(name, value, completion) for value in found], dtype=np.float64)


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
