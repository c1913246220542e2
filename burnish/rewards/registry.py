"""The reward contract: a plain function, called with the arguments that it names.

This is burnish's own form; functions in the forms of TRL and verl work too (``burnish.rewards.forms``).

A reward for one completion may name ``completion``, ``prompt``, ``reference`` and ``text``, and returns a number. A
batch reward may name their plurals ``completions``, ``prompts``, ``references`` and ``texts``, and returns one number
per completion. None in place of a number means that the reward does not apply to the completion. A sequence in its
place has one number per token of ``completion.token_ids``: what each token earned. ``async def`` functions run
concurrently.

Either kind may also name ``flags``, what screening reported about a completion (a tuple of names; in a batch reward one
tuple per completion), ``reference_policy``, the frozen policy that training started from, and ``log_metric`` and
``log_count``, to be called with the name and value of a metric of its own, which is averaged or summed over the step.
Keyword-only arguments with defaults are the reward's options, keys of its ``[[reward]]`` table. What the signature
cannot express is declared in the decorator ``reward`` and kept as ``RewardFacts``.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from burnish.errors import BurnishError, InputError, is_interrupt, one_line
from burnish.registry import Registry, has_kind, nearest
from burnish.rewards.forms import TABLE, Context, Signature, bind, read_signature
from burnish.rewards.votes import AnswerReading
from burnish.types import Completion

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

METRIC = ("use", "name", "better")
"""Keys of an entry of ``evaluation.metrics`` that are not options of the reward."""
_FACTS = "__burnish_reward__"


def declare(**facts: Any) -> Callable[[F], F]:
    """Return a decorator with the facts of a reward that recipes reach as ``module:object``, and not by a name."""

    def keep(function: F) -> F:
        setattr(function, _FACTS, RewardFacts(**facts))
        return function

    return keep


@dataclass(frozen=True, slots=True)
class RewardFacts:
    """What a reward declares in its decorator, beyond its signature.

    Attributes:
        needs_reference: every prompt must have a reference; checked before a model is loaded. A function of all options
            if that depends on them.
        several_references: the reward reads ``prompt.references``; any other that takes a reference is called with each
            of several in turn, and the best value counts.
        needs_whole: why the reward cannot score the beginning of a completion; empty if it can. With a reason,
            ``credit`` must be "completion".
        needs_companions: the reward compares the samples of one prompt, so there must be at least two; or a function of
            all options.
        english_only: whether the reward understands English only; a function of all options if that depends on them.
        check_options: called with all options by name when a recipe is read; raises InputError if they cannot work.
        preflight: called with all options by name before a model is loaded, for a reward that depends on something
            outside (a sandbox, a server), and with ``offline`` if it names that; returns a message and its level
            ("info" or "warning"), or raises BurnishError.
        files: called with all options by name; returns the paths that the reward reads and no option names, such as
            those of a model. Their hashes are kept in inputs.json.
        judges_answers: the reward is 1 for a right answer: before training it is asked about the references themselves.
        read_answer: called with a text and all options by name; returns the answer in it, None or "" if there is none.
            Majority votes need it.
        same_answer: called with two such answers and all options by name, whether they are equal; None compares by ==.
    """

    needs_reference: bool | Callable[..., bool] = False
    several_references: bool = False
    needs_whole: str = ""
    needs_companions: bool | Callable[..., bool] = False
    english_only: bool | Callable[..., bool] = False
    check_options: Callable[..., None] | None = None
    preflight: Callable[..., tuple[str, str]] | None = None
    files: Callable[..., Iterable[Path]] | None = None
    judges_answers: bool = False
    read_answer: Callable[..., Any] | None = None
    same_answer: Callable[..., bool] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.needs_whole, str):
            raise InputError(f"needs_whole = {self.needs_whole!r}: must be the reason, as text")


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A reward with the contract read from its signature and its decorator."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    facts: RewardFacts = RewardFacts()

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names it is called with, besides options and columns."""
        return self.signature.arguments

    @property
    def batch(self) -> bool:
        """Whether it takes all completions at once."""
        return self.signature.batch

    @property
    def options(self) -> Mapping[str, Any]:
        """Its options and their defaults."""
        return self.signature.options

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def check_options(self, options: Mapping[str, Any], beside: Sequence[str] = TABLE) -> None:
        """Raise InputError if an option is unknown, has the wrong type, or is refused by the reward's own check.

        The error lists the keys ``beside`` too, which are allowed where the options were written.
        """
        for key, value in options.items():
            if key not in self.options:
                known = [*beside, *self.options]
                names = ", ".join(known) or "none"
                raise InputError(f"'{self.name}' has no option '{key}'{nearest(key, known)}; known: {names}")
            default = self.options[key]
            if not has_kind(value, default):
                raise InputError(
                    f"'{self.name}': {key} = {value!r} must be of the same type as its default {default!r}"
                )
        if self.facts.check_options is not None:
            self._answer(self.facts.check_options, options)

    def check_credit(self, credit: str) -> None:
        """Raise InputError if ``credit`` would score beginnings of completions and the reward needs the whole."""
        if credit != "completion" and self.facts.needs_whole:
            raise InputError(
                f"credit = \"{credit}\": '{self.name}' needs the whole completion, because {self.facts.needs_whole}: "
                "remove credit"
            )

    def english_only(self, options: Mapping[str, Any]) -> bool:
        """Return whether, with these options, the reward understands English only."""
        return self._holds(self.facts.english_only, options)

    def needs_reference(self, options: Mapping[str, Any]) -> bool:
        """Return whether, with these options, every prompt must have a reference."""
        return self._holds(self.facts.needs_reference, options)

    def needs_companions(self, options: Mapping[str, Any]) -> bool:
        """Return whether, with these options, a prompt must have at least two samples."""
        return self._holds(self.facts.needs_companions, options)

    def _holds(self, rule: bool | Callable[..., bool], options: Mapping[str, Any]) -> bool:
        return bool(self._answer(rule, options)) if callable(rule) else rule

    def _answer(self, ask: Callable[..., T], options: Mapping[str, Any], **further: Any) -> T:
        """Return what a function of the decorator returns. Raises InputError if it raises."""
        try:
            return ask(**{**self.options, **options, **further})
        except BurnishError:
            raise
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise InputError(
                f"reward '{self.name}': its {getattr(ask, '__name__', 'function')} raised {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error

    def preflight(self, options: Mapping[str, Any], *, offline: bool = False) -> tuple[str, str] | None:
        """Return the message and level of the reward's preflight check; None if it has no such check."""
        check = self.facts.preflight
        if check is None:
            return None
        own = {"offline": offline} if "offline" in inspect.signature(check).parameters else {}
        return self._answer(check, options, **own)

    def files(self, options: Mapping[str, Any]) -> list[Path]:
        """Return the files that the reward reads and that no option names."""
        return [] if self.facts.files is None else list(self._answer(self.facts.files, options))

    def answer_reading(self, options: Mapping[str, Any]) -> AnswerReading | None:
        """Return how the reward reads and compares answers; None if it has not declared it."""
        read, same, values = self.facts.read_answer, self.facts.same_answer, {**self.options, **options}
        if read is None:
            return None
        return AnswerReading(self.name, partial(read, **values), partial(same, **values) if same else operator.eq)

    def calls(
        self, completions: Sequence[Completion], context: Context, options: Mapping[str, Any]
    ) -> list[Callable[[], Any]]:
        """Return the calls that score the completions: one for a batch reward, else one per completion."""
        return bind(self.function, self.signature, completions, context, options)

    def takes_each_reference(self, completions: Sequence[Completion]) -> bool:
        """Whether the completions must be scored against each of their references in turn."""
        readers = {"reference", "references", "ground_truth", "ground_truths"}
        by_reference = self.facts.needs_reference or not readers.isdisjoint(self.arguments)
        several = any(completion.prompt.alternatives for completion in completions)
        return several and bool(by_reference) and not self.facts.several_references


def check_choice(reward: str, option: str, value: str, choices: Collection[str]) -> None:
    """Raise InputError if an option's value is not one of the choices."""
    if value not in choices:
        raise InputError(
            f"{reward}: unknown {option} = '{value}'{nearest(value, choices)}; known: {', '.join(choices)}"
        )


def reward_function(name: str, function: object) -> RewardFunction:
    """Read the contract of a function. Raises InputError if it is not callable, or an argument cannot be filled."""
    if isinstance(function, RewardFunction):
        return function
    if not callable(function):
        raise InputError(f"reward '{name}' is not a function: it is of type {type(function).__name__}")
    facts = getattr(function, _FACTS, RewardFacts())
    return RewardFunction(name, function, read_signature(name, function), facts)


REWARDS: Registry[RewardFunction] = Registry(
    "reward",
    builtin={
        "bleu": "burnish.rewards.library.overlap:bleu",
        "perplexity": "burnish.rewards.library.fluency:perplexity",
        "repetition": "burnish.rewards.library.diversity:repetition",
        "exact": "burnish.rewards.library.answers:exact",
        "numeric": "burnish.rewards.library.answers:numeric",
        "math": "burnish.rewards.library.answers:math_answer",
        "choice": "burnish.rewards.library.answers:choice",
        "verifier": "burnish.rewards.library.answers:verifier",
        "chrf": "burnish.rewards.library.overlap:chrf",
        "ter": "burnish.rewards.library.overlap:ter",
        "rouge_l": "burnish.rewards.library.overlap:rouge_l",
        "word_f1": "burnish.rewards.library.overlap:word_f1",
        "keywords": "burnish.rewards.library.keywords:keywords",
        "length_band": "burnish.rewards.library.format:length_band",
        "regex": "burnish.rewards.library.format:regex",
        "json_format": "burnish.rewards.library.format:json_format",
        "compression": "burnish.rewards.library.diversity:compression",
        "group_diversity": "burnish.rewards.library.diversity:group_diversity",
        "reward_model": "burnish.rewards.library.learned:reward_model",
        "classifier": "burnish.rewards.library.learned:classifier",
        "unit_tests": "burnish.rewards.library.code:unit_tests",
        "informativeness": "burnish.rewards.library.information:informativeness",
        "readability": "burnish.rewards.library.information:readability",
        "grammar": "burnish.rewards.library.grammar:grammar",
        "sentiment": "burnish.rewards.library.tone:sentiment",
        "attractiveness": "burnish.rewards.library.tone:attractiveness",
        "toxicity": "burnish.rewards.library.tone:toxicity",
        "content_filter": "burnish.safety.filter.reward:content_filter",
        "judge": "burnish.rewards.library.judge:judge",
        "similarity": "burnish.rewards.library.similarity:similarity",
    },
    wrap=reward_function,
)


@overload
def reward(function: F) -> F: ...
@overload
def reward(
    *,
    name: str | None = None,
    needs_reference: bool | Callable[..., bool] = False,
    several_references: bool = False,
    needs_whole: str = "",
    needs_companions: bool | Callable[..., bool] = False,
    english_only: bool | Callable[..., bool] = False,
    check_options: Callable[..., None] | None = None,
    preflight: Callable[..., tuple[str, str]] | None = None,
    files: Callable[..., Iterable[Path]] | None = None,
    judges_answers: bool = False,
    read_answer: Callable[..., Any] | None = None,
    same_answer: Callable[..., bool] | None = None,
) -> Callable[[F], F]: ...
def reward(function: F | None = None, *, name: str | None = None, **facts: Any) -> F | Callable[[F], F]:
    """Register a reward; usable as ``@burnish.reward`` and as ``@burnish.reward(needs_reference=True)``.

    The decorator returns the function itself. Recipes call the reward by ``name``, or by the function's own name;
    ``facts`` are the fields of ``RewardFacts``. Raises InputError if an argument of the function cannot be filled, or
    the name is taken.
    """
    declared = RewardFacts(**facts)

    def register(function: F) -> F:
        if facts:
            setattr(function, _FACTS, declared)
        registered_name = name or function.__name__
        REWARDS.add(registered_name, reward_function(registered_name, function))
        return function

    return register(function) if function is not None else register
