"""What a reward is: a plain function, called with the arguments it names.

A reward for one completion may name ``completion``, ``prompt``, ``reference`` and ``text``, and returns a number. A batch
reward may name their plurals ``completions``, ``prompts``, ``references`` and ``texts``, and returns one number each.
In place of a number either may return a sequence of numbers, one for each of ``completion.token_ids``: what each earned.
Either may also name ``reference_policy``, the frozen policy that training started from. Keyword-only arguments with
defaults are the reward's options: keys of its ``[[reward]]`` table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from burnish.errors import InputError
from burnish.registry import Registry, nearest, of_kind
from burnish.types import Completion

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel

F = TypeVar("F", bound=Callable[..., Any])

ONE: Mapping[str, Callable[[Completion], Any]] = {
    "completion": lambda completion: completion,
    "prompt": lambda completion: completion.prompt,
    "reference": lambda completion: completion.prompt.reference,
    "text": lambda completion: completion.text,
}
MANY: Mapping[str, str] = {f"{name}s": name for name in ONE}
SHARED = ("reference_policy",)
TABLE = ("use", "weight", "name", "clip", "gate", "normalise", "schedule", "credit")
"""Keys of a ``[[reward]]`` table that are no options of the reward."""
METRIC = ("use", "name", "better")
"""Keys of an entry of ``evaluation.metrics`` that are no options of the reward."""
_CHECK = "_burnish_check"


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A reward with its contract read from its signature.

    Attributes:
        name: as registered.
        function: what the user wrote.
        arguments: the names it is called with.
        batch: whether it takes all completions at once.
        options: keyword-only arguments and their defaults.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    batch: bool
    options: Mapping[str, Any]

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def check_options(self, options: Mapping[str, Any], beside: Sequence[str] = TABLE) -> None:
        """Raises InputError where ``options`` holds what are not this reward's, or of another type.

        Args:
            beside: keys that may stand beside the options where these were written; the error names them too.
        """
        for key, value in options.items():
            if key not in self.options:
                known = [*beside, *self.options]
                names = ", ".join(known) or "none"
                raise InputError(f"'{self.name}' has no option '{key}'{nearest(key, known)}; known: {names}")
            default = self.options[key]
            if not of_kind(value, default):
                raise InputError(f"'{self.name}': {key} = {value!r} must be of the kind of its default {default!r}")
        check = getattr(self.function, _CHECK, None)
        if check is not None:
            check(**{**self.options, **options})

    def check_credit(self, credit: str) -> None:
        """Raises InputError where the reward must see the whole completion (``function.needs_whole``, a reason) and is
        asked about its beginnings."""
        reason = getattr(self.function, "needs_whole", "")
        if credit != "completion" and reason:
            raise InputError(
                f"credit = \"{credit}\": '{self.name}' needs the whole completion: {reason}: leave credit out"
            )

    def english_only(self, options: Mapping[str, Any]) -> bool:
        """Whether, with these options, it makes nothing of a text in another language (``function.english_only``, a
        function of all options)."""
        rule = getattr(self.function, "english_only", None)
        return bool(rule is not None and rule(**{**self.options, **options}))

    def __call__(
        self, completions: Sequence[Completion], *, reference_policy: LanguageModel | None = None, **options: Any
    ) -> list[Any]:
        """One number a completion, or one a token of it, as the function returned them; not yet checked."""
        shared = {"reference_policy": reference_policy} if "reference_policy" in self.arguments else {}
        names = [name for name in self.arguments if name not in SHARED]
        if self.batch:
            columns = {name: [ONE[MANY[name]](completion) for completion in completions] for name in names}
            return list(self.function(**columns, **shared, **options))
        return [
            self.function(**{name: ONE[name](completion) for name in names}, **shared, **options)
            for completion in completions
        ]


def checked_by(check: Callable[..., None]) -> Callable[[F], F]:
    """Has a reward's options checked with the recipe, before anything is loaded: ``check`` gets all of them by name and
    raises InputError where they cannot work."""

    def mark(function: F) -> F:
        setattr(function, _CHECK, check)
        return function

    return mark


def reward_function(name: str, function: object) -> RewardFunction:
    """Reads a function's contract. Raises InputError that says which argument cannot be filled."""
    if isinstance(function, RewardFunction):
        return function
    if not callable(function):
        raise InputError(f"reward '{name}' is no function but a {type(function).__name__}")
    arguments: list[str] = []
    options: dict[str, Any] = {}
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise InputError(
            f"reward '{name}': Python does not know its arguments; wrap it in a function of your own"
        ) from error
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            if parameter.name in TABLE:
                raise InputError(
                    f"reward '{name}': option '{parameter.name}' is a key of every [[reward]] table: give it another name"
                )
            options[parameter.name] = parameter.default
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InputError(f"reward '{name}': '{parameter}' has no name to be filled by; name each argument")
        elif parameter.name in (*ONE, *MANY, *SHARED):
            arguments.append(parameter.name)
        else:
            known = [*ONE, *MANY, *SHARED]
            raise InputError(
                f"reward '{name}': nothing is called '{parameter.name}'{nearest(parameter.name, known)}; it may name "
                f"{', '.join(known)}; options come after a * and have defaults"
            )
    one, many = [a for a in arguments if a in ONE], [a for a in arguments if a in MANY]
    if bool(one) == bool(many):
        found = f"names both {one[0]} and {many[0]}" if one else "names neither a completion nor completions"
        raise InputError(f"reward '{name}' {found}: take one completion, or all of them")
    return RewardFunction(name, cast("Callable[..., Any]", function), tuple(arguments), bool(many), options)


REWARDS: Registry[RewardFunction] = Registry(
    "reward",
    builtin={
        "bleu": "burnish.rewards.library.overlap:bleu",
        "perplexity": "burnish.rewards.library.fluency:perplexity",
        "repetition": "burnish.rewards.library.diversity:repetition",
        "exact": "burnish.rewards.library.overlap:exact",
        "numeric": "burnish.rewards.library.answers:numeric",
        "verifier": "burnish.rewards.library.answers:verifier",
        "chrf": "burnish.rewards.library.overlap:chrf",
        "ter": "burnish.rewards.library.overlap:ter",
        "rouge_l": "burnish.rewards.library.keywords:rouge_l",
        "keywords": "burnish.rewards.library.keywords:keywords",
        "length_band": "burnish.rewards.library.format:length_band",
        "regex": "burnish.rewards.library.format:regex",
        "json_format": "burnish.rewards.library.format:json_format",
        "compression": "burnish.rewards.library.diversity:compression",
        "group_diversity": "burnish.rewards.library.diversity:group_diversity",
        "reward_model": "burnish.rewards.library.learned:reward_model",
        "unit_tests": "burnish.rewards.library.code:unit_tests",
        "informativeness": "burnish.rewards.library.information:informativeness",
        "readability": "burnish.rewards.library.information:readability",
        "grammar": "burnish.rewards.library.grammar:grammar",
        "sentiment": "burnish.rewards.library.tone:sentiment",
        "attractiveness": "burnish.rewards.library.tone:attractiveness",
        "toxicity": "burnish.rewards.library.tone:toxicity",
        "judge": "burnish.rewards.library.judge:judge",
        "similarity": "burnish.rewards.library.similarity:similarity",
    },
    wrap=reward_function,
)


@overload
def reward(function: F) -> F: ...
@overload
def reward(*, name: str | None = None) -> Callable[[F], F]: ...
def reward(function: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
    """Registers a reward under its function's name, or another; the function itself stays as it is.

    Raises:
        InputError: an argument cannot be filled, or the name is taken.
    """

    def register(function: F) -> F:
        own = name or function.__name__
        REWARDS.add(own, reward_function(own, function))
        return function

    return register(function) if function is not None else register
