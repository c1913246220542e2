"""JSON Schema for the reward ``json_format``: read once, checked before anything is loaded, and never slow on a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from burnish.errors import InputError
from burnish.extras import needed
from burnish.paths import expanded
from burnish.rewards.patterns import MOST_WAYS, ways

LONGEST = 2000
"""Characters of a text that a schema with patterns is held against; a longer one scores 0."""
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose value is a table of schemas by name."""
MOST_ERRORS = 1000
"""Errors that are counted; a text with more scores as one with so many."""


def errors_of(schema: Mapping[str, Any], file: str) -> Callable[[str, Any], int | None]:
    """What counts a value's errors under a schema; None where it cannot be judged (nested too deep, too long for the
    patterns, numbers beyond the floats).

    Args:
        schema: as a table; or
        file: the path of a JSON file with it.

    Raises:
        InputError: the package is missing, the file cannot be read, it holds no schema, the schema asks for another
            document, or a pattern of it could take for ever.
    """
    if file:
        return _compiled(_read(file), f"schema_file = '{file}'")
    return _compiled(json.dumps(schema), "schema")


def _read(file: str) -> str:
    try:
        return expanded(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
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
    kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except library.SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise InputError(f"json_format: {where}{' at ' + place if place else ''}: {error.message[:200]}") from error
    patterns = list(_checked(schema, where))
    # An empty registry: what a schema asks for elsewhere is nowhere, and no network is asked.
    validator = kind(schema, registry=referencing.Registry())

    def count(source: str, value: Any) -> int | None:
        if patterns and len(source) > LONGEST:
            return None
        try:
            return sum(1 for _ in islice(validator.iter_errors(value), MOST_ERRORS))
        except (RecursionError, ArithmeticError):
            return None

    return count


def _checked(schema: Any, where: str) -> Iterator[str]:
    """The patterns of a schema. Raises InputError at one that could be slow, and at what lies in another document."""
    if isinstance(schema, list):
        for item in schema:
            yield from _checked(item, where)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
            raise InputError(f'json_format: {where}: {key} = "{value}" is another document: write it into $defs')
        if key == "pattern" and isinstance(value, str):
            yield _fast(value, where)
        if key == "patternProperties" and isinstance(value, dict):
            yield from (_fast(pattern, where) for pattern in value)
        if key in _BY_NAME and isinstance(value, dict):
            # Its keys are names of somebody's own, "default" and "pattern" among them.
            for below in value.values():
                yield from _checked(below, where)
        elif key not in ("const", "enum", "default", "examples"):
            yield from _checked(value, where)


def _fast(pattern: str, where: str) -> str:
    """A pattern that is searched for: from every place on, but where it begins with a text's beginning."""
    try:
        found = ways(pattern, LONGEST) * (1 if pattern.startswith("^") else LONGEST)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"json_format: {where}: {pattern!r} is no pattern: {error}") from error
    except InputError as error:
        raise InputError(str(error).replace("regex:", f"json_format: {where}: {pattern!r}:")) from error
    if found > MOST_WAYS:
        raise InputError(
            f"json_format: {where}: the pattern {pattern!r} has more than {MOST_WAYS:,} ways to match a text of {LONGEST} "
            "characters, which could take for ever: begin it with ^, and take repeats out of repeats"
        )
    return pattern
