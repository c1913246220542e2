"""Forms of a reward function, told apart by its signature: burnish's own, TRL's and verl's.

burnish's own names what it takes: see ``burnish.rewards.registry``. TRL's has ``**kwargs`` and gets ``prompts``,
``completions`` and the data's columns, as lists. verl's names ``solution_str``, and further ``data_source``,
``ground_truth`` and ``extra_info``, or the plurals of all four.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from burnish.errors import ContractError, InputError
from burnish.registry import nearest
from burnish.types import Completion, Prompt

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel

Kind = Literal["burnish", "trl", "verl"]
Flags = tuple[str, ...]
Log = Callable[[str, float], None]
"""Called by a reward with the name and the value of a metric of its own."""

SINGULAR: Mapping[str, Callable[[Completion], Any]] = {
    "completion": lambda completion: completion,
    "prompt": lambda completion: completion.prompt,
    "reference": lambda completion: completion.prompt.reference,
    "text": lambda completion: completion.text,
}
PLURAL: Mapping[str, str] = {f"{name}s": name for name in SINGULAR}
SHARED = ("reference_policy", "log_metric", "log_count")
OWN_METRICS = ("errors", "not_applied", "not_finite")
"""Names of the counts that burnish adds to a reward's own metrics."""
STEP_METRICS = ("mean", "std")
"""``reward/mean`` and ``reward/std`` are of a step's rewards, so no reward has one of these names."""
FLAGS = "flags"
"""The argument that is a completion's flags, or in a batch reward those of all completions."""
TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
VERL: Mapping[str, Callable[[Completion], Any]] = {
    "data_source": lambda completion: completion.prompt.metadata.get("data_source", _task(completion.prompt)),
    "solution_str": lambda completion: completion.text,
    "ground_truth": lambda completion: _ground_truth(completion.prompt),
    "extra_info": lambda completion: dict(_mapping(completion.prompt.metadata.get("extra_info"))),
}
VERL_PLURAL: Mapping[str, str] = {f"{name}s": name for name in VERL}
TABLE = ("use", "weight", "name", "clip", "gate", "normalise", "schedule", "credit", "max_errors", "time_limit")
"""Keys of a ``[[reward]]`` table that are not options of the reward."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a reward function takes.

    Attributes:
        arguments: the names that it is called with, besides options and columns.
        batch: whether it takes all completions at once.
        options: parameters of its own and their defaults.
        columns: in TRL's form, the data's columns that every prompt must have.
        rest: whether ``**kwargs`` takes what it does not name.
    """

    kind: Kind
    arguments: tuple[str, ...]
    batch: bool
    options: Mapping[str, Any]
    columns: tuple[str, ...] = ()
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What a reward may use besides completions: the frozen policy, their flags, the step, and its own metrics.

    ``log`` takes a value that is averaged over the step, ``count`` one that is summed.
    """

    reference_policy: LanguageModel | None = None
    flags: Sequence[Flags] | None = None
    step: int | None = None
    log: Log = field(default=lambda name, value: None)
    count: Log = field(default=lambda name, value: None)

    @property
    def shared(self) -> dict[str, Any]:
        return {"reference_policy": self.reference_policy, "log_metric": _own(self.log), "log_count": _own(self.count)}


def _own(log: Log) -> Log:
    """Return a function with which a reward logs, under names of its own."""

    def named(name: str, value: float) -> None:
        if name in OWN_METRICS:
            raise ContractError(f"a reward logged '{name}', which is a count of burnish's own: choose another name")
        log(name, value)

    return named


def read_signature(name: str, function: Callable[..., Any]) -> Signature:
    """Return what a function takes. Raises InputError if an argument cannot be filled."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except Exception as error:  # an object may answer this with whatever it likes
        raise InputError(
            f"reward '{name}': Python cannot tell its arguments; wrap it in a function of your own"
        ) from error
    names = {parameter.name for parameter in parameters}
    rest = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
    if names & {"solution_str", "solution_strs"}:
        return _foreign(name, parameters, "verl", [*VERL, *VERL_PLURAL])
    if rest and (names & {"prompts", "completions", "completion_ids"} or names == set(rest)):
        return _foreign(name, parameters, "trl", TRL)
    return _named(name, parameters)


def bind(
    function: Callable[..., Any], signature: Signature, completions: Sequence[Completion], context: Context,
    options: Mapping[str, Any],
) -> list[Callable[[], Any]]:  # fmt: skip
    """Return the calls that score the completions: one for a batch reward, else one per completion."""
    if signature.kind == "trl":
        return [partial(function, **{**_trl(signature, completions, context), **options})]
    shared = {name: value for name, value in context.shared.items() if name in signature.arguments}
    if signature.kind == "verl":
        single, plural = VERL, VERL_PLURAL
    else:
        single, plural = SINGULAR, PLURAL
    names = [name for name in signature.arguments if name in single or name in plural]
    flags = [()] * len(completions) if context.flags is None else context.flags
    flagged = FLAGS in signature.arguments
    if signature.batch:
        values = {name: [single[plural[name]](completion) for completion in completions] for name in names}
        return [partial(function, **values, **({FLAGS: list(flags)} if flagged else {}), **shared, **options)]
    return [
        partial(
            function, **{name: single[name](completion) for name in names}, **({FLAGS: own} if flagged else {}),
            **shared, **options,
        )
        for completion, own in zip(completions, flags, strict=True)
    ]  # fmt: skip


def missing_columns(signature: Signature, prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    """Return the columns that the function needs, each with the first prompt that lacks it.

    In TRL's form these are its parameters without defaults, in verl's form the ground truth.
    """
    needed = [*signature.columns, *(name for name in signature.arguments if name.startswith("ground_truth"))]
    missing: dict[str, Prompt] = {}
    for prompt in prompts if needed else ():
        for column in needed:
            if column.startswith("ground_truth") and signature.kind == "verl":
                present = _ground_truth(prompt) is not None
            else:
                present = column in prompt.metadata or (column == "reference" and prompt.reference is not None)
            if not present:
                missing.setdefault(column, prompt)
    return missing


def _named(name: str, parameters: Sequence[inspect.Parameter]) -> Signature:
    arguments: list[str] = []
    options: dict[str, Any] = {}
    known = [*SINGULAR, *PLURAL, *SHARED, FLAGS]
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            options[parameter.name] = parameter.default
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise InputError(
                f"reward '{name}': '{parameter}' cannot be filled by name; name each argument (in TRL's form, "
                "completions and **kwargs)"
            )
        elif parameter.name in known:
            arguments.append(parameter.name)
        else:
            raise InputError(
                f"reward '{name}': unknown argument '{parameter.name}'{nearest(parameter.name, known)}; a reward may "
                f"take {', '.join(known)}; options come after a * and have defaults; with completions and **kwargs "
                "(TRL's form) it may name columns of the data"
            )
    _check_options(name, options)
    return Signature("burnish", tuple(arguments), _is_batch(name, arguments, SINGULAR, PLURAL), options)


def _foreign(name: str, parameters: Sequence[inspect.Parameter], kind: Kind, known: Sequence[str]) -> Signature:
    """Read TRL's or verl's form, in which every parameter with a default is an option."""
    arguments: list[str] = []
    columns: list[str] = []
    options: dict[str, Any] = {}
    rest = False
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputError(f"reward '{name}': '{parameter}' cannot be filled by name; name each argument")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            rest = rest or parameter.kind is parameter.VAR_KEYWORD
        elif parameter.name in known:
            arguments.append(parameter.name)
        elif parameter.default is not parameter.empty:
            options[parameter.name] = parameter.default
        elif kind == "trl":
            columns.append(parameter.name)
        else:
            raise InputError(
                f"reward '{name}': unknown argument '{parameter.name}'{nearest(parameter.name, known)}; a function in "
                f"verl's form takes {', '.join(VERL)}, and options with defaults"
            )
    _check_options(name, options)
    batch = kind == "trl" or _is_batch(name, arguments, VERL, VERL_PLURAL)
    if kind == "verl" and rest:
        arguments = list(VERL_PLURAL if batch else VERL)
    return Signature(kind, tuple(arguments), batch, options, tuple(columns), rest)


def _is_batch(name: str, arguments: Sequence[str], single: Iterable[str], plural: Iterable[str]) -> bool:
    one, many = [a for a in arguments if a in single], [a for a in arguments if a in plural]
    if bool(one) == bool(many):
        problem = f"takes both {one[0]} and {many[0]}" if one else "takes neither a completion nor completions"
        raise InputError(f"reward '{name}' {problem}: take one completion, or all of them")
    return bool(many)


def _check_options(name: str, options: Iterable[str]) -> None:
    for option in options:
        if option in TABLE:
            raise InputError(f"reward '{name}': option '{option}' is a key of every [[reward]] table: rename it")


def _trl(signature: Signature, completions: Sequence[Completion], context: Context) -> dict[str, Any]:
    prompts = [completion.prompt for completion in completions]
    columns = {
        column: [prompt.metadata.get(column) for prompt in prompts]
        for column in dict.fromkeys(key for prompt in prompts for key in prompt.metadata)
        if column not in ("prompt", "completion", "completion_ids")
    }
    columns.setdefault("reference", [list(one.references) if one.alternatives else one.reference for one in prompts])
    chats = [_is_conversation(prompt) for prompt in prompts]
    values: dict[str, Any] = columns | {
        "prompts": [
            [{"role": message.role, "content": message.content} for message in prompt.messages] if chat else prompt.text
            for prompt, chat in zip(prompts, chats, strict=True)
        ],
        "completions": [
            [{"role": "assistant", "content": completion.text}] if chat else completion.text
            for completion, chat in zip(completions, chats, strict=True)
        ],
        "completion_ids": [list(completion.token_ids) for completion in completions],
        # Held-out measurements score as before the first step, so that they can be compared.
        "trainer_state": SimpleNamespace(global_step=(context.step or 1) - 1),
        "log_extra": lambda column, rows: None,
        "log_metric": context.shared["log_metric"],
    }
    return {
        key: value
        for key, value in values.items()
        if signature.rest or key in (*signature.arguments, *signature.columns, *signature.options)
    }


def _is_conversation(prompt: Prompt) -> bool:
    """Whether TRL would call the prompt conversational: the data has messages, not a text that the chat wraps."""
    turns = [message for message in prompt.messages if message.role != "system"]
    return len(turns) > 1 or (bool(turns) and any(map(_is_messages, prompt.metadata.values())))


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) and "role" in one for one in value)


def _ground_truth(prompt: Prompt) -> Any:
    for holder in (_mapping(prompt.metadata.get("reward_model")), prompt.metadata):
        if "ground_truth" in holder:
            return holder["ground_truth"]
    return prompt.reference


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a column that holds an object, also as JSON text; an empty one for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _task(prompt: Prompt) -> str:
    return prompt.id.partition("/")[0]


def distinct_names(functions: Iterable[object], taken: Iterable[str] = ()) -> list[str]:
    """Return a name for each function: its own, or its partial's or its class's, with a number if that is taken."""
    names: list[str] = []
    known = set(taken)
    for function in functions:
        while isinstance(function, partial):
            function = function.func
        base = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
        number = next(number for number in count(1) if _numbered(base, number) not in known)
        names.append(_numbered(base, number))
        known.add(names[-1])
    return names


def _numbered(base: str, number: int) -> str:
    return base if number == 1 else f"{base}_{number}"
