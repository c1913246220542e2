"""Reading a recipe's file: TOML in, dotted overrides, and errors that name the key, the value and the nearest right
spelling. What a recipe holds is in ``recipe.py``, and in ``supervised/recipe.py`` for the verbs beside ``train``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from burnish.errors import InputError
from burnish.registry import nearest

R = TypeVar("R", bound=BaseModel)

# In a wheel the recipes lie inside the package, in a checkout beside it.
RECIPES = next(
    folder
    for folder in (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")
    if folder.is_dir()
)

VERBS = ("sft", "prefer", "reward-model")
"""The kinds of recipes that are named for the verb that runs them; a recipe without a kind is for ``burnish train``."""


def shipped(kind: str | None = None) -> dict[str, Path]:
    """Name -> file of the recipes that come with burnish, for ``burnish train`` or of another kind."""
    files = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    return {name: path for name, path in files.items() if _kind_of(path) == kind}


def _kind_of(path: Path) -> str | None:
    kind = tomllib.loads(path.read_text(encoding="utf-8")).get("kind")
    return None if kind is None else str(kind)


def read_data(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    changes: Mapping[str, Any] | None = None,
    kind: str | None = None,
) -> tuple[dict[str, Any], str]:
    """A recipe's raw keys with changes and overrides applied, and where they were read, for messages.

    Raises:
        InputError: the file is missing or broken, or the recipe is one of another verb.
    """
    if isinstance(source, Mapping):
        data, where = dict(source), "recipe"
    else:
        path = _find(source, kind)
        where = str(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: not valid TOML: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    _refuse_other_verbs(data.get("kind"), kind, where)
    data.update(changes or {})
    for override in overrides:
        _apply(data, override)
    return data, where


def _refuse_other_verbs(found: Any, wanted: str | None, where: str) -> None:
    if found == wanted:
        return
    verb = wanted or "train"
    if found is None:
        raise InputError(
            f'{where}: no recipe for `burnish {verb}`, which begins with kind = "{wanted}"; '
            "a recipe without a kind is for `burnish train`"
        )
    if found in VERBS:
        raise InputError(f"{where}: a recipe for `burnish {found}`, not for `burnish {verb}`")
    raise InputError(f"{where}: kind = {found!r}: known kinds are {', '.join(VERBS)}; `burnish train` has none")


def validated(model: type[R], data: Mapping[str, Any], where: str) -> R:
    """The recipe that raw keys make. Raises InputError with the first thing that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, model)}") from error


def _find(source: str | Path, kind: str | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    everything = {path.stem: path for path in RECIPES.glob("*.toml")}
    if str(source) in everything:
        return everything[str(source)]
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the recipe's .toml file")
    names = list(shipped(kind))
    raise InputError(
        f"no recipe '{source}'{nearest(str(source), names)}: name a .toml file or one of: {', '.join(names)}"
    )


def read_override(override: str) -> tuple[str, Any]:
    """Key and value of ``key=value``; the value is read as TOML, or as plain text where it is none.

    Raises:
        InputError: there is no ``=``, or nothing before it.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override '{override}': write it as key=value or section.key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def _apply(data: dict[str, Any], override: str) -> None:
    """Sets one dotted key."""
    key, value = read_override(override)
    path = [part.strip() for part in key.split(".")]
    if not all(path):
        raise InputError(f"override '{override}': write it as key=value or section.key=value")
    place: Any = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(place, list):
            place = _item(place, part, override)
        else:
            # Copied on the way down: what the caller handed in is never changed.
            below = place.get(part, {})
            below = [dict(i) if isinstance(i, dict) else i for i in below] if isinstance(below, list) else below
            if not isinstance(below, dict | list):
                raise InputError(f"override '{override}': {'.'.join(path[: depth + 1])} is a value, not a section")
            place[part] = dict(below) if isinstance(below, dict) else below
            place = place[part]
    if isinstance(place, list):
        raise InputError(f"override '{override}': write the item's number too, as in reward.0.weight=1.0")
    place[path[-1]] = value


def _item(items: list[Any], part: str, override: str) -> Any:
    if not part.isdigit() or int(part) >= len(items):
        raise InputError(f"override '{override}': '{part}' is no item; write a number from 0 to {len(items) - 1}")
    if not isinstance(items[int(part)], dict):
        raise InputError(f"override '{override}': item {part} is a value, not a table: set the whole list")
    return items[int(part)]


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    # pydantic names the branch of a union in the path, which is no key: policy.lora.targets.list[str].
    parts = [str(part) for part in first["loc"] if not re.search(r"[\[\]'\"]", str(part))]
    path = ".".join(parts)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1], model)
        return f"unknown key '{path}'{nearest(str(first['loc'][-1]), known)}; known here: {', '.join(known)}{more}"
    if first["type"] == "missing" and path.rpartition(".")[2].isdigit():
        # A place in a list of fixed length, and all of those are pairs.
        return f"{path.rpartition('.')[0]} needs two values, in brackets{more}"
    if first["type"] == "missing":
        hint = ': add a [[reward]] table, for instance use = "bleu"' if path == "reward" else ""
        return f"'{path}' is missing{hint}{more}"
    if path == "reward" and first["type"] == "too_short":
        return f'there is no reward: add a [[reward]] table, for instance use = "bleu"{more}'
    if path == "reward" and first["type"] == "list_type":
        return f"reward must be a list of tables: write [[reward]] with two brackets{more}"
    if first["type"] == "value_error":
        message = re.sub(r"^Value error, ", "", first["msg"])
        return f"{path + ': ' if path else ''}{message}{more}"
    return f"{path} = {_shown(first['input'])}: {_wanted(first)}{more}"


_KINDS: Mapping[str, str] = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text, in quotes",
    "bool_type": "must be true or false",
    "list_type": "must be a list, in brackets",
    "tuple_type": "must be a list, in brackets",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} values",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "must be of a-z, A-Z, digits, '.', '_' and '-', a letter or digit first: it names a folder",
    "string_too_long": "must have at most {max_length} characters",
}
"""What a user did wrong, by pydantic's kind of error, in the words of a recipe."""


def _wanted(error: Mapping[str, Any]) -> str:
    """What a value must be, instead of what it is."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        name = str(error["loc"][-1])
        if name.isdigit():
            return f"must be a table: write [[{error['loc'][-2]}]] and its keys below it"
        return f"must be a table, as in {name} = {{ key = value }}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {context['expected']}{nearest(str(error['input']), known)}"
    if kind in _KINDS:
        return _KINDS[kind].format(**{name: _limit(value) for name, value in context.items()})
    message = str(error["msg"])
    return message[0].lower() + message[1:]


def _limit(value: Any) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    """A value as a recipe would write it, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _known_keys(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            break
        model = next(
            (kind for kind in _classes(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)),
            model,
        )
    return list(model.model_fields)


def _classes(annotation: Any) -> list[Any]:
    parts = getattr(annotation, "__args__", ())
    return [annotation, *(inner for part in parts for inner in _classes(part))]
