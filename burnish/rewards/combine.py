"""Combination of several rewards into the return R(tau): a sum of weighted parts.

A part's value r of a completion goes through these steps: clipped to ``clip``; in training, normalised among the
prompt's or the step's completions; multiplied by the weight, which may follow a schedule. Then the gates apply: if
another part has a ``gate`` and its raw value is below that, this part counts only if it is negative, so a closed gate
never raises a reward. In training, a part whose ``credit`` is finer than the completion is also split by token: see
``rewards.token_credit``. The only state of a combination is the running mean and variance of the parts that are
normalised by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from burnish.algorithms.reward_shaping import RunningMoments, standardise_by_moments
from burnish.errors import BurnishError, ContractError, InputError
from burnish.rewards.forms import STEP_METRICS, Context, Flags, distinct_names
from burnish.rewards.part import LARGEST, Part, PartValues, normalise
from burnish.rewards.process_state import forget_randomness
from burnish.rewards.registry import REWARDS, RewardFunction, reward_function
from burnish.rewards.token_credit import Decode, token_gains
from burnish.types import Completion, Scores, TokenRewards

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel


Begin: TypeAlias = "Callable[[Part, Sequence[Completion], Context], Callable[[], PartValues]]"
"""Begins to score completions by a part, perhaps in another process; returns what waits for the part's values."""


def _in_turn(part: Part, completions: Sequence[Completion], context: Context) -> Callable[[], PartValues]:
    return partial(part.values, completions, context)


class Combination:
    """The scorer of a run: R(tau) = sum over the K parts of weight * part, clipped, normalised and gated as configured.

    Raises InputError if the parts cannot be combined.

    Args:
        parts: at least one, with different names.
        reference_policy: the frozen policy, for rewards that take it.
        decode: token ids to text, for parts whose credit is finer than the completion.
        must_apply: whether it is an error if no part applies to any completion of the first call.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        reference_policy: LanguageModel | None = None,
        *,
        decode: Decode | None = None,
        must_apply: bool = True,
    ) -> None:
        if not parts:
            raise InputError("there is no reward: add at least one")
        names = [part.name for part in parts]
        gated = any(part.gate is not None for part in parts)
        for part in parts:
            if names.count(part.name) > 1:
                raise InputError(f"two rewards are named '{part.name}': rename one of them")
            part.check()
            if part.gate is not None and len(parts) == 1:
                raise InputError(
                    f"reward '{part.name}': gate = {part.gate} needs another reward to hold back: remove gate"
                )
            if "reference_policy" in part.function.arguments and reference_policy is None:
                raise InputError(f"reward '{part.name}' needs the reference policy: pass reference_policy=...")
            if part.credit != "completion" and (part.normalise is not None or gated):
                raise InputError(
                    f"reward '{part.name}': credit = \"{part.credit}\" cannot be combined with its own normalise or "
                    "with a gate, which compare or judge whole completions: remove one of them"
                )
        forget_randomness()
        self.decode = decode
        self.parts = tuple(parts)
        self.reference_policy = reference_policy
        self.begin: Begin = _in_turn
        self._must_apply = must_apply
        self.moments = {part.name: RunningMoments() for part in parts if part.normalise == "running"}

    def score(
        self,
        completions: Sequence[Completion],
        *,
        step: int | None = None,
        flags: Sequence[Flags] | None = None,
    ) -> Scores:
        """Return total [N] and parts [N] each, float64, in the completions' order.

        Raises BurnishError if a reward raises, or does not return one finite number per completion.

        Args:
            completions: the N completions.
            flags: of each completion, for rewards that name ``flags``; None where they were not screened.
            step: the training step, counted from 1. None in a held-out measurement: weights are those after the last
                step, nothing is split by token, and no part is normalised, since that would make every mean 0.
        """
        parts: dict[str, np.ndarray] = {}
        per_token: dict[str, list[np.ndarray] | None] = {}
        logged: dict[str, tuple[float, ...]] = {}
        counts: dict[str, float] = {}
        contexts = [self._context(part, step, flags, logged, counts) for part in self.parts]
        begun = [self.begin(part, completions, own) for part, own in zip(self.parts, contexts, strict=True)]
        for part, finish in zip(self.parts, begun, strict=True):
            parts[part.name], per_token[part.name] = finish()
        self._check_applied(parts, in_training=step is not None)
        weights = {part.name: part.weight_at(step) for part in self.parts}
        values = {part.name: part.clipped(parts[part.name]) for part in self.parts}
        scores = Scores(
            self._gated_sum(values, parts, weights), parts, weights,
            # A part that does not apply (not-a-number) holds nothing back.
            passed={part.name: ~(parts[part.name] < part.gate) for part in self.parts if part.gate is not None},
            scheduled=tuple(part.name for part in self.parts if part.schedule is not None),
            logged=logged,
            counts=counts,
        )  # fmt: skip
        if step is None:
            return scores
        if any(part.normalise is not None for part in self.parts):
            values = {part.name: self._normalised(part, values[part.name], completions) for part in self.parts}
            scores = replace(scores, total=self._gated_sum(values, parts, weights), unnormalised=scores.total)
        return replace(scores, token_rewards=self._token_rewards(completions, values, per_token, weights))

    def values(self, completions: Sequence[Completion]) -> dict[str, list[float]]:
        """Return the ``parts`` of ``score`` as lists, without numpy, which is slow to import, if the rewards are numbers."""
        context = Context(self.reference_policy)
        values = {
            part.name: [row if isinstance(row, float) else float(row.sum()) for row in part.rows(completions, context)]
            for part in self.parts
        }
        self._check_applied(values)
        return values

    def update_state(self, scores: Scores) -> None:
        """Add a step's rewards to the running moments. A step's own rewards are normalised by the moments before it."""
        for part in self.parts:
            if part.name in self.moments:
                values = part.clipped(np.asarray(scores.parts[part.name]))
                known = values[~np.isnan(values)]
                if known.size:
                    self.moments[part.name] = self.moments[part.name].after(torch.from_numpy(known))

    @property
    def state(self) -> dict[str, list[float]]:
        """Count, mean and sum of squares of each part with running normalisation, for a checkpoint."""
        return {name: [moments.count, moments.mean, moments.squares] for name, moments in self.moments.items()}

    @state.setter
    def state(self, state: Mapping[str, Sequence[float]]) -> None:
        restored = {name: [float(number) for number in state[name]] for name in self.moments}
        for name, numbers in restored.items():
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or numbers[0] < 0 or numbers[2] < 0:
                raise InputError(
                    f"the state of reward '{name}' is {numbers}: must be a count of at least 0, a mean, and a sum of "
                    "squares of at least 0"
                )
        self.moments = {name: RunningMoments(*numbers) for name, numbers in restored.items()}

    def _context(
        self, part: Part, step: int | None, flags: Sequence[Flags] | None,
        logged: dict[str, tuple[float, ...]], counts: dict[str, float],
    ) -> Context:  # fmt: skip
        def log(name: str, value: float) -> None:
            if (number := usable(name, value, counts)) is not None:
                key = f"{part.name}/{name}"
                logged[key] = (*logged.get(key, ()), number)

        def count(name: str, value: float) -> None:
            if (number := usable(name, value, logged)) is not None:
                key = f"{part.name}/{name}"
                counts[key] = counts.get(key, 0.0) + number

        def usable(name: str, value: float, others: Container[str]) -> float | None:
            if f"{part.name}/{name}" in others:
                raise ContractError(
                    f"reward '{part.name}' logged '{name}' with log_metric and with log_count: use two names"
                )
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if abs(number) <= LARGEST:
                return number
            key = f"{part.name}/not_finite"
            counts[key] = counts.get(key, 0.0) + 1.0
            return None

        return Context(self.reference_policy, flags, step, log, count)

    def _normalised(self, part: Part, values: np.ndarray, completions: Sequence[Completion]) -> np.ndarray:
        if part.normalise is None:
            return values
        if part.normalise == "running":
            return standardise_by_moments(torch.from_numpy(values), self.moments[part.name]).numpy()
        return normalise(part.normalise, values, completions)

    def _token_rewards(
        self,
        completions: Sequence[Completion],
        values: Mapping[str, np.ndarray],
        per_token: Mapping[str, list[np.ndarray] | None],
        weights: Mapping[str, float],
    ) -> TokenRewards | None:
        """Return the split by token; None if no part's credit is finer than the completion.

        ``values`` are [N] of each part, ``per_token`` the split that its function returned itself, if it did.
        """
        counted = [part for part in self.parts if weights[part.name] != 0]
        for part in counted:
            if per_token[part.name] is not None and part.credit != "token":
                raise ContractError(
                    f"reward '{part.name}' returned numbers per token: set credit = \"token\" in its [[reward]] table, "
                    "or return one number per completion"
                )
        finer = [part for part in counted if part.credit != "completion"]
        if not finer:
            return None
        others = {part.name: 0.0 if part in finer else weights[part.name] for part in self.parts}
        gains = [np.zeros(len(completion.token_ids)) for completion in completions]
        for part in finer:
            split = per_token[part.name] or self._token_gains(part, completions, np.nan_to_num(values[part.name]))
            for total, row in zip(gains, split, strict=True):
                total += weights[part.name] * row
        return TokenRewards(self._gated_sum(values, values, others), tuple(gains))

    def _token_gains(self, part: Part, completions: Sequence[Completion], values: np.ndarray) -> list[np.ndarray]:
        if self.decode is None:
            raise InputError(f"reward '{part.name}': credit = \"{part.credit}\" has to decode tokens: pass decode=...")

        def score(prefixes: Sequence[Completion]) -> np.ndarray:
            try:
                prefix_values, per_token = self.begin(part, prefixes, Context(self.reference_policy))()
            except BurnishError as error:
                raise type(error)(
                    f'{error} (scoring the beginning of a completion, or empty text, for credit = "{part.credit}")'
                ) from error
            if per_token is not None:
                raise ContractError(f"reward '{part.name}' returned a number for one text and a sequence for another")
            return part.clipped(np.nan_to_num(prefix_values))

        return token_gains(completions, values, part.credit, self.decode, score)

    def _check_applied(self, parts: Mapping[str, Sequence[float] | np.ndarray], *, in_training: bool = False) -> None:
        """Raise ContractError if not a single value of N completions is a number.

        In a measurement, one batch may hold other kinds of prompts, so only the first counts.
        """
        count = len(next(iter(parts.values())))
        if not count or not (in_training or self._must_apply):
            return
        if all(math.isnan(value) for values in parts.values() for value in values):
            raise ContractError(
                f"no reward applies to any of {count} completions: {', '.join(parts)} returned None for all of them; "
                "is a return missing?"
            )
        self._must_apply = False

    def _gated_sum(
        self, values: Mapping[str, np.ndarray], raw: Mapping[str, np.ndarray], weights: Mapping[str, float]
    ) -> np.ndarray:
        """Return the weighted sum of the values [N], without the credit that gates hold back where ``raw`` is below."""
        total = np.zeros_like(next(iter(values.values())))
        for part in self.parts:
            if weights[part.name] == 0:
                continue
            credit = weights[part.name] * np.nan_to_num(values[part.name])
            for other in self.parts:
                if other.gate is not None and other is not part:
                    credit = np.where(raw[other.name] < other.gate, np.minimum(credit, 0.0), credit)
            total += credit
        return total


def combine(
    parts: Mapping[str | Callable[..., Any] | RewardFunction, float], reference_policy: LanguageModel | None = None
) -> Combination:
    """Combine weighted rewards into one scorer: ``combine({"bleu": 1.0, brevity: 0.2}).score(completions).total``.

    ``parts`` is registered name, ``module:object`` or reward function -> weight; ``reference_policy`` is the frozen
    policy, for rewards that take it. Raises InputError for an unknown name, a function that is not a reward, or
    whatever ``Combination`` refuses.
    """
    functions = [key for key in parts if not isinstance(key, str | RewardFunction)]
    taken = [_registered(key)[0] for key in parts if isinstance(key, str | RewardFunction)]
    names = dict(zip(map(id, functions), distinct_names(functions, taken), strict=True))
    chosen = []
    for key, weight in parts.items():
        own = names.get(id(key), "")
        name, function = (own, reward_function(own, key)) if own else _registered(key)
        if name in STEP_METRICS:
            raise InputError(f"reward/{name} is a metric of every step: give the reward another name")
        chosen.append(Part(name, function, weight))
    return Combination(chosen, reference_policy)


def _registered(key: Any) -> tuple[str, RewardFunction]:
    return (key.rpartition(":")[2], REWARDS.get(key)) if isinstance(key, str) else (key.name, key)
