"""Reading a recipe: its TOML file, dotted overrides, and errors that name the key, the value and the right spelling."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.parsing import given_text, toml_of

R = TypeVar("R", bound=BaseModel)

# A wheel has the recipes inside the package, a checkout has them next to it.
RECIPES = next(
    folder
    for folder in (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")
    if folder.is_dir()
)

KINDS = ("sft", "prefer", "reward-model")
"""The values of a recipe's ``kind``, each the verb that runs it; a recipe without a kind is for ``burnish train``."""


def builtin_recipes(kind: str | None = None) -> dict[str, Path]:
    """Return name -> file of the built-in recipes of one kind; None means those for ``burnish train``."""
    paths = sorted(RECIPES.glob("*.toml"))
    return {path.stem: path for path in paths if tomllib.loads(path.read_text(encoding="utf-8")).get("kind") == kind}


def read_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    changes: Mapping[str, Any] | None = None,
    kind: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Return a recipe's unchecked keys, with changes and overrides applied, and the file's path for messages.

    Raises InputError if the file is missing or invalid, or the recipe is for another verb.
    """
    if isinstance(source, Mapping):
        data, where = dict(source), "recipe"
    else:
        path = _find(source, kind)
        where = str(path)
        try:
            data = toml_of(given_text(path))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: not valid TOML: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    _check_kind(data.get("kind"), kind, where)
    data.update(changes or {})
    for override in overrides:
        _apply(data, override)
    return data, where


def _check_kind(kind: Any, expected: str | None, where: str) -> None:
    if kind == expected:
        return
    verb = expected or "train"
    if kind is None:
        raise InputError(
            f'{where}: not a recipe for `burnish {verb}`, which needs kind = "{expected}"; '
            "a recipe without a kind is for `burnish train`"
        )
    if kind in KINDS:
        raise InputError(f"{where}: a recipe for `burnish {kind}`, not for `burnish {verb}`")
    raise InputError(
        f"{where}: kind = {kind!r}: known kinds are {', '.join(KINDS)}; a recipe for `burnish train` has no kind"
    )


def validate(model: type[R], data: Mapping[str, Any], where: str) -> R:
    """Return the recipe that the keys describe. Raises InputError that explains the first wrong key or value."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, model)}") from error


def _find(source: str | Path, kind: str | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    builtin = {path.stem: path for path in RECIPES.glob("*.toml")}
    if str(source) in builtin:
        return builtin[str(source)]
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is not a regular file; name the recipe's .toml file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the recipe's .toml file")
    names = list(builtin_recipes(kind))
    raise InputError(
        f"no recipe '{source}'{nearest(str(source), names)}; name a .toml file or one of: {', '.join(names)}"
    )


def read_override(override: str) -> tuple[str, Any]:
    """Return the key and value of ``key=value``; a value that is not TOML is text.

    Raises InputError if there is no ``=``, or nothing before it.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override '{override}': write it as key=value or section.key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one dotted key."""
    key, value = read_override(override)
    path = [part.strip() for part in key.split(".")]
    if not all(path):
        raise InputError(f"override '{override}': write it as key=value or section.key=value")
    target: Any = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(target, list):
            target = _item(target, part, override)
        else:
            # Copied on the way down, because the caller's mapping must not change.
            below = target.get(part, {})
            below = [dict(i) if isinstance(i, dict) else i for i in below] if isinstance(below, list) else below
            if not isinstance(below, dict | list):
                raise InputError(f"override '{override}': {'.'.join(path[: depth + 1])} is a value, not a section")
            target[part] = dict(below) if isinstance(below, dict) else below
            target = target[part]
    if isinstance(target, list):
        raise InputError(f"override '{override}': add the item's number, as in reward.0.weight=1.0")
    target[path[-1]] = value


def _item(items: list[Any], part: str, override: str) -> Any:
    """Return a table of a list; the number after the last one adds a table."""
    if not part.isdigit() or int(part) > len(items):
        raise InputError(f"override '{override}': '{part}' is not an item; use a number from 0 to {len(items)}")
    if int(part) == len(items):
        items.append({})
    if not isinstance(items[int(part)], dict):
        raise InputError(f"override '{override}': item {part} is a value, not a table; set the whole list")
    return items[int(part)]


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first error in one line, and count the others."""
    problems = error.errors()
    first = problems[0]
    # pydantic adds the branch of a union to the path, as in policy.lora.targets.list[str]; it is not a key.
    parts = [str(part) for part in first["loc"] if not re.search(r"[\[\]'\"]", str(part))]
    path = ".".join(parts)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known, key = _known_keys(first["loc"][:-1], model), str(first["loc"][-1])
        hint = nearest(key, known) or _elsewhere(key, model)
        return f"unknown key '{path}'{hint}; known keys: {', '.join(known)}{more}"
    if first["type"] == "missing" and path.rpartition(".")[2].isdigit():
        # A missing item of a list of fixed length; all such lists are pairs.
        return f"{path.rpartition('.')[0]} needs two values, in brackets{more}"
    if first["type"] == "missing":
        hint = '; add a [[reward]] table, for example with use = "bleu"' if path == "reward" else ""
        return f"'{path}' is missing{hint}{more}"
    if path == "reward" and first["type"] == "too_short":
        return f'there is no reward; add a [[reward]] table, for example with use = "bleu"{more}'
    if path == "reward" and first["type"] == "list_type":
        return f"reward must be a list of tables; write [[reward]] with double brackets{more}"
    if first["type"] == "value_error":
        message = re.sub(r"^Value error, ", "", first["msg"])
        return f"{path + ': ' if path else ''}{message}{more}"
    return f"{path} = {_format_value(first['input'])}: {_expectation(first)}{more}"


_EXPECTATIONS: Mapping[str, str] = {
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
    "string_pattern_mismatch": (
        "must consist of a-z, A-Z, digits, '.', '_' and '-' and start with a letter or digit, since it names a folder"
    ),
    "string_too_long": "must have at most {max_length} characters",
}
"""pydantic's error type -> what a recipe's value must be."""


def _expectation(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        name = str(error["loc"][-1])
        if name.isdigit():
            return f"must be a table; write [[{error['loc'][-2]}]] with its keys below"
        return f"must be a table, as in {name} = {{ key = value }}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {context['expected']}{nearest(str(error['input']), known)}"
    if kind in _EXPECTATIONS:
        return _EXPECTATIONS[kind].format(**{name: _format_limit(value) for name, value in context.items()})
    message = str(error["msg"])
    return message[0].lower() + message[1:]


def _format_limit(value: Any) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _format_value(value: Any) -> str:
    """Format a value as a recipe would write it, shortened to 100 characters."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _elsewhere(key: str, model: type[BaseModel]) -> str:
    """Return a hint at a key of this name, or nearly, in any section; "" if there is none."""
    keys = sorted(_all_keys(model), key=lambda path: path.count("."))
    same = [path for path in keys if path.rpartition(".")[2] == key]
    if same:
        return f" (did you mean {' or '.join(same)}?)"
    names = sorted({path.rpartition(".")[2] for path in keys})
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    return f" (did you mean {' or '.join(p for p in keys if p.rpartition('.')[2] == close[0])}?)" if close else ""


def _all_keys(model: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of a recipe, those of lists of tables with their number 0."""
    for name, field in model.model_fields.items():
        yield path + name
        listed = str(field.annotation).startswith("list[")
        for kind in _classes(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _all_keys(kind, f"{path}{name}.{'0.' if listed else ''}")


def _known_keys(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            break
        kinds = _classes(field.annotation)
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)


def _classes(annotation: Any) -> list[Any]:
    parts = getattr(annotation, "__args__", ())
    return [annotation, *(inner for part in parts for inner in _classes(part))]
