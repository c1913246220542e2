"""JSON Schema for the reward ``json_format``: checked before anything is loaded, and held against a text within a budget."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import unquote

from burnish.errors import InputError
from burnish.rewards.library.patterns import MOST_WAYS, anchored, ways
from burnish.system.optional_packages import needed
from burnish.system.paths import expanded

LONGEST = 2000
"""Characters of a text that a schema with patterns is held against; a longer one scores 0."""
LONGEST_WITHOUT = 10_000
"""The same for a schema without patterns."""
MOST_RULES = 20_000
"""Keywords that are applied to one text: a schema that refers to itself may double them with each level of the text."""
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose value is a table of schemas by name."""
MOST_ERRORS = 1000
"""Errors that are counted; a text with more scores as one with so many."""


class _TooMuchError(Exception):
    """The budget of one text is spent."""


def errors_of(schema: Mapping[str, Any], file: str) -> Callable[[str, Any], int | None]:
    """What counts a value's errors under a schema; None where it cannot be judged (nested too deep, too long, numbers
    beyond the floats, or more rules to apply than the budget has).

    Args:
        schema: as a table; or
        file: the path of a JSON file with it.

    Raises:
        InputError: the package is missing, the file cannot be read, it holds no schema, the schema asks for another
            document, or a pattern of it could take for ever.
    """
    if file:
        return _compiled(_read(file), f"schema_file = '{file}'")
    try:
        return _compiled(json.dumps(schema), "schema")
    except TypeError as error:
        raise InputError(f"json_format: schema holds what JSON does not have ({error}): write it as text") from error


def _read(file: str) -> str:
    try:
        return expanded(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text, or no path"
        raise InputError(f"json_format: schema_file = '{file}': cannot be read: {reason}") from error


@lru_cache(maxsize=8)
def _compiled(text: str, where: str) -> Callable[[str, Any], int | None]:
    library = needed("jsonschema", "schema", f"json_format: {where}")
    referencing = needed("referencing", "schema", f"json_format: {where}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"json_format: {where} is not JSON ({error})") from error
    if not isinstance(schema, dict):
        raise InputError(f"json_format: {where} must be a JSON object, and is a {type(schema).__name__}")
    try:
        kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
        kind.check_schema(schema)
        patterns = list(_checked(schema, where, schema))
    except (RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"json_format: {where} is no JSON Schema ({type(error).__name__}: {error})") from error
    except library.SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise InputError(f"json_format: {where}{' at ' + place if place else ''}: {error.message[:200]}") from error
    # Chosen by it already; below a reference to the whole it would choose again, and without the budget.
    schema.pop("$schema", None)
    left = 0

    def counted(rule: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooMuchError
            return rule(*arguments)

        return once

    kind = library.validators.extend(kind, {name: counted(rule) for name, rule in kind.VALIDATORS.items()})
    # An empty registry: what a schema asks for elsewhere is nowhere, and no network is asked.
    validator = kind(schema, registry=referencing.Registry())

    def count(source: str, value: Any) -> int | None:
        nonlocal left
        if len(source) > (LONGEST if patterns else LONGEST_WITHOUT):
            return None
        left = MOST_RULES
        try:
            return sum(1 for _ in islice(validator.iter_errors(value), MOST_ERRORS))
        except (_TooMuchError, RecursionError, ArithmeticError):
            return None
        except (referencing.exceptions.Unresolvable, AttributeError, re.error) as error:
            raise InputError(f"json_format: {where} cannot be followed ({error}): mend its references") from error

    return count


def _refuse_dangling(reference: str, whole: Any, where: str) -> None:
    """Raises InputError where a path within the document leads to no schema."""
    found = whole
    for part in reference.removeprefix("#/").split("/"):
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (KeyError, ValueError, IndexError, TypeError):
            found = None
    if not isinstance(found, dict | bool):
        raise InputError(f'json_format: {where}: $ref = "{reference}" leads to no schema: write it there')


def _checked(schema: Any, where: str, whole: Any) -> Iterator[str]:
    """The patterns of a schema. Raises InputError at one that could be slow, and at what lies in another document."""
    if isinstance(schema, list):
        for item in schema:
            yield from _checked(item, where, whole)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
            raise InputError(f'json_format: {where}: {key} = "{value}" is another document: write it into $defs')
        if key == "$ref" and isinstance(value, str) and value.startswith("#/"):
            _refuse_dangling(value, whole, where)
        if key == "pattern" and isinstance(value, str):
            yield _fast(value, where)
        if key == "patternProperties" and isinstance(value, dict):
            yield from (_fast(pattern, where) for pattern in value)
            _fast("|".join(value), where)  # as a validator joins them, for additionalProperties
        if key in _BY_NAME and isinstance(value, dict):
            # Its keys are names of somebody's own, "default" and "pattern" among them.
            for below in value.values():
                yield from _checked(below, where, whole)
        elif key not in ("const", "enum", "default", "examples"):
            yield from _checked(value, where, whole)


def _fast(pattern: str, where: str) -> str:
    """A pattern that is searched for: from every place on, but where it begins with a text's beginning."""
    try:
        found = ways(pattern, LONGEST) * (1 if anchored(pattern) else LONGEST)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"json_format: {where}: {pattern!r} is no pattern: {error}") from error
    except InputError as error:
        raise InputError(str(error).replace("regex:", f"json_format: {where}: {pattern!r}:")) from error
    if found > MOST_WAYS:
        raise InputError(
            f"json_format: {where}: the pattern {pattern!r} has more than {MOST_WAYS:,} ways to match a text of {LONGEST} "
            "characters, which could take for ever: begin it with ^, and bound its repeats, as in {1,20}"
        )
    return pattern
