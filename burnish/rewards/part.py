"""One weighted reward of a combination: its settings, its checked values, and their normalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch

from burnish.algorithms.reward_shaping import rank_in_group, standardise
from burnish.errors import BurnishError, ContractError, InputError, is_interrupt, one_line, text_of
from burnish.rewards.calling import OverTime, explain, failed, outcomes
from burnish.rewards.forms import Context
from burnish.rewards.references import best_values, each_reference
from burnish.rewards.registry import RewardFunction
from burnish.rewards.token_credit import Credit
from burnish.types import Completion, Prompt


class WeightSchedule(Protocol):
    """A factor of a weight that depends on the step."""

    def at(self, step: int | None) -> float:
        """Return the factor at a step, counted from 1; None means after the last step."""


LARGEST = 1e100
"""Largest absolute value of a reward, so that no sum or square over a run leaves the range of float64."""
LARGEST_WEIGHT = 1e12
"""Largest absolute value of a weight."""

Normalisation = Literal["group", "batch", "rank", "running"]
"""How a part's values are normalised in training.

"group", "batch" and "running" subtract the mean and divide by the standard deviation: those of the prompt's
completions, of the step's, or of all earlier steps'. If all values of a group or step are equal, they become 0. "rank"
is the rank among the prompt's completions, from -1 to 1.
"""


PartValues: TypeAlias = "tuple[np.ndarray, list[np.ndarray] | None]"
"""A part's values [N], and their split by token, N arrays [|o_i|], if its function gives one."""
Outcome: TypeAlias = "float | np.ndarray | BurnishError | None"
"""What a reward says of one completion: a value, values per token, an error, or that it does not apply."""


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
        max_errors: the largest share of a step's completions on which the function may fail; they are counted, and the
            part does not apply to them. More is an error.
        time_limit: seconds that a call may take; None for no limit.
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
    max_errors: float = 0.0
    time_limit: float | None = None

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
            if not is_finite(value):
                raise InputError(f"reward '{self.name}': {name} = {value!r}: must be a finite number")
            if name == "weight" and abs(self.weight) > LARGEST_WEIGHT:
                raise InputError(
                    f"reward '{self.name}': weight = {value!r}: must be from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
                )
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise InputError(
                f"reward '{self.name}': clip = {self.clip!r}: must be two numbers, the first below the second"
            )
        if not 0 <= self.max_errors <= 1:
            raise InputError(f"reward '{self.name}': max_errors = {self.max_errors!r}: must be from 0 to 1")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError(f"reward '{self.name}': time_limit = {self.time_limit!r}: must be above 0 seconds")
        for name, chosen, choices in (
            ("normalise", self.normalise, (None, *get_args(Normalisation))),
            ("credit", self.credit, get_args(Credit)),
        ):
            if chosen not in choices:
                known = ", ".join(f'"{choice}"' for choice in choices if choice)
                raise InputError(f"reward '{self.name}': {name} = {chosen!r}: must be one of {known}")
        self.function.check_options(self.options)
        self.function.check_credit(self.credit)

    def values(self, completions: Sequence[Completion], context: Context) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """Return the part's values [N], and their split by token, N arrays [|o_i|], if the function gives one.

        A value is not-a-number where the part does not apply: where the function returned None, or failed and
        ``max_errors`` tolerates it.

        Raises BurnishError if the function raises, takes too long, or does not return finite numbers, one per
        completion or per token.
        """
        return self.split(self.rows(completions, context), completions)

    def rows(self, completions: Sequence[Completion], context: Context) -> list[float | np.ndarray]:
        """Return the value of each completion, or its values per token, as ``values`` does; needs no numpy for floats."""
        return self.settled(self.evaluate(completions, context), context)

    def evaluate(self, completions: Sequence[Completion], context: Context) -> list[Outcome]:
        """Return what the function says of each completion: a value, values per token, None, or the error.

        Raises BurnishError at the first one, if no error is tolerated.
        """
        found: list[Outcome] = []
        returned = self._results(completions, context) if completions else []
        for value, completion in zip(returned, completions, strict=True):
            try:
                found.append(None if value is None else self._checked(value, completion, context))
            except BurnishError as error:
                if not self.max_errors:
                    raise
                found.append(error)
        return found

    def settled(self, outcomes: Sequence[Outcome], context: Context) -> list[float | np.ndarray]:
        """Return the rows of all of a step's outcomes, and count. Raises BurnishError where too many are errors."""
        problems = [one for one in outcomes if isinstance(one, BurnishError)]
        if unused := sum(one is None for one in outcomes):
            context.count("not_applied", unused)
        if self.max_errors and outcomes:
            context.count("errors", len(problems))
        if len(problems) > self.max_errors * len(outcomes):
            raise BurnishError(
                f"{problems[0]} (reward '{self.name}' failed on {len(problems)} of {len(outcomes)} completions, more "
                f"than max_errors = {self.max_errors:g} allows)"
            )
        return [math.nan if one is None or isinstance(one, BurnishError) else one for one in outcomes]

    def _results(self, completions: Sequence[Completion], context: Context) -> list[Any]:
        """Return what the function returned for each completion, or the exception that it raised."""
        if not self.function.takes_each_reference(completions):
            return self._returned(completions, context)
        indices, pairs = each_reference(completions)
        flags = None if context.flags is None else [context.flags[index] for index in indices]
        return best_values(indices, self._returned(pairs, replace(context, flags=flags)))

    def _returned(self, completions: Sequence[Completion], context: Context) -> list[Any]:

        def ask(some: Sequence[Completion], context: Context) -> list[Any]:
            calls = self.function.calls(some, context, self.options)
            return outcomes(calls, self.time_limit, stop_early=not self.max_errors)

        if not self.function.batch:
            results = ask(completions, context)
            return results + [None] * (len(completions) - len(results))
        [together] = ask(completions, context)
        if not failed(together):
            return _listed(self.name, together, completions)
        results = [together] * len(completions)
        if type(together) is OverTime or self.function.needs_companions(self.options):
            return results
        # One at a time, to name the row, or to keep the others.
        for index, completion in enumerate(completions):
            flags = None if context.flags is None else [context.flags[index]]
            [alone] = ask([completion], replace(context, flags=flags))
            results[index] = alone if failed(alone) else _listed(self.name, alone, [completion])[0]
            if failed(alone) and not self.max_errors:
                break
        return results if any(map(failed, results)) else [together] * len(completions)

    def _checked(self, value: Any, completion: Completion, context: Context) -> float | np.ndarray:
        """Return a completion's value, or its values per token. Raises BurnishError."""
        if failed(value):
            reason = explain(value, self.function.function)
            raise BurnishError(f"reward '{self.name}' {reason} on {named_row(completion)}") from value
        if type(value) is float and -LARGEST <= value <= LARGEST:
            return value
        with _reading(self.name, value, completion.prompt):
            if isinstance(value, Mapping) and "score" in value:  # verl's form
                for key, one in value.items():
                    if key != "score" and isinstance(one, Real):
                        context.log(str(key), one)  # type: ignore[arg-type]
                value = value["score"]
            if _is_sequence(value):
                return _numbers(self.name, value, completion)
            return _number(self.name, value, completion)

    def split(
        self, rows: Sequence[float | np.ndarray], completions: Sequence[Completion]
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """Return rows as the values [N], and as their split by token if the function gave one."""
        sequences = [not isinstance(row, float) for row in rows]
        if not any(sequences):
            return np.array(rows, dtype=np.float64), None
        for row, completion in zip(rows, completions, strict=True):
            if not isinstance(row, np.ndarray) and not math.isnan(row):
                raise ContractError(
                    f"reward '{self.name}' returned a sequence for prompt '{completions[sequences.index(True)].prompt.id}"
                    f"' but not for prompt '{completion.prompt.id}': return numbers per token for all completions, or "
                    "for none"
                )
        if self.clip is not None:
            raise ContractError(
                f"reward '{self.name}' returned numbers per token, but clip limits whole completions: remove clip, and "
                "limit the numbers in the function"
            )
        per_token = [
            row if isinstance(row, np.ndarray) else np.zeros(len(completion.token_ids))
            for row, completion in zip(rows, completions, strict=True)
        ]
        return np.array([float(np.sum(row)) for row in rows], dtype=np.float64), per_token


def is_finite(value: object) -> bool:
    """Return whether a value is a number, no truth value, in the range of a float."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def finite_or_none(value: float) -> float | None:
    """Return a part's value, or None, as JSON has it, where the part does not apply."""
    return None if np.isnan(value) else float(value)


def normalise(by: Normalisation, values: np.ndarray, completions: Sequence[Completion]) -> np.ndarray:
    """Return values [N] normalised by "group", "batch" or "rank"; not-a-number stays and does not count."""
    groups: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        if math.isnan(values[index]):
            continue
        groups.setdefault("" if by == "batch" else completion.prompt.id, []).append(index)
    result = np.where(np.isnan(values), np.nan, 0.0)
    scale = rank_in_group if by == "rank" else standardise
    for indices in groups.values():
        result[indices] = scale(torch.from_numpy(values[indices])).numpy()
    return result


def _listed(name: str, values: Any, completions: Sequence[Completion]) -> list[Any]:
    """Return what a batch reward returned as a list. Raises BurnishError if it is not one value per completion."""
    most = len(completions) + 1  # an iterator may have no end
    with _reading(name, values):
        if isinstance(values, str | bytes | Mapping):
            raise TypeError("it is not a list")
        listed = list(islice(values, most))
        size = len(values) if len(listed) == most and hasattr(values, "__len__") else len(listed)
    if len(listed) != len(completions):
        raise ContractError(
            f"reward '{name}' returned {size} values for {len(completions)} completions (prompt "
            f"'{completions[0].prompt.id}' is the first): a batch reward must return one number per completion"
        )
    return listed


def named_row(completion: Completion) -> str:
    """Return the row that a completion answers, for messages."""
    prompt = completion.prompt
    return f"{_named(prompt)}, sample {completion.index + 1} ({_short(prompt.text)} -> {_short(completion.text)})"


def _named(prompt: Prompt) -> str:
    return f"prompt '{prompt.id}'" + (f" ({prompt.position} of the data)" if prompt.position else "")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 40 else line[:37] + "...")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _numbers(name: str, values: Any, completion: Completion) -> np.ndarray:
    """Return one finite number per token, [|o_i|]."""
    tokens, size = len(completion.token_ids), len(values)
    numbers = list(values) if size == tokens else []
    if size != tokens or any(_is_sequence(value) for value in numbers):
        raise ContractError(
            f"reward '{name}' returned {_shown(values)} for {_named(completion.prompt)}: {size} values for "
            f"{tokens} tokens; a sequence must have one number per token of completion.token_ids"
        )
    return np.array([_number(name, value, completion) for value in numbers], dtype=np.float64)


def _number(name: str, value: Any, completion: Completion) -> float:
    """Return a number (int, float, bool, numpy scalar, tensor without dimensions) as a float."""
    where = f"reward '{name}' returned {_shown(value)} for {_named(completion.prompt)}"
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, Real):
        raise ContractError(f"{where}: a reward must be one number per completion")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ContractError(f"{where}: a reward must be finite; handle that case in the function")
    if abs(number) > LARGEST:
        raise ContractError(f"{where}: a reward must be from {-LARGEST:g} to {LARGEST:g}; limit it in the function")
    return number


@contextmanager
def _reading(name: str, value: object, prompt: Prompt | None = None) -> Iterator[None]:
    """Turn what a returned object raises when it is read into a ContractError.

    The object is for one completion, of a prompt, or for all of them.
    """
    try:
        yield
    except BurnishError:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        where = f" for {_named(prompt)}" if prompt else ""
        rule = "reward must be" if prompt else "batch reward must return a list with"
        # A TypeError says only that it is not one.
        cause = "" if isinstance(error, TypeError) else f" ({type(error).__name__}: {one_line(error)})"
        raise ContractError(
            f"reward '{name}' returned {_shown(value)}{where}: a {rule} one number per completion{cause}"
        ) from error


def _shown(value: object) -> str:
    if type(value) in (str, bytes):
        value = value[:80]  # type: ignore[index]
    text = text_of(lambda: repr(value))
    kind = type(value).__name__
    if text is None:
        return f"an object that cannot be shown ({kind})"
    return (text if len(text) <= 60 else text[:57] + "...") + f" ({kind})"
