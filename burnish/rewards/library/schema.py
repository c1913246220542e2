"""Regular expressions and JSON Schemas within a budget, since the text that they are applied to comes from a model.

The package ``regex`` matches as ``re`` does, look-arounds and back-references included, and stops when its time is up.
A linear-time engine (google-re2) would need no limit, but has neither of the two and takes only ASCII for letters.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from math import prod
from typing import Any
from urllib.parse import unquote

from burnish.errors import InputError
from burnish.system.optional_packages import needed
from burnish.system.parsing import json_of
from burnish.system.paths import expanded

SECONDS = 1.0
"""Processor time that all patterns of one reward may take on one text."""
MOST_REPEATS = 1_000_000
"""Product of the counts {n} in a pattern: ``regex`` writes them out when it compiles, and would fill the memory."""
_COUNT = re.compile(r"\{(\d+)")
LONGEST = 2000
"""Characters of a text that is checked against a schema with patterns; a longer one scores 0."""
LONGEST_WITHOUT = 10_000
"""The same for a schema without patterns."""
MOST_RULES = 20_000
"""Keywords applied to one text. A schema that refers to itself may double them with each level of the text."""
MOST_ERRORS = 1000
"""Errors that are counted; a text with more scores as if it had so many."""
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords whose value is a table of schemas by name."""


@lru_cache(maxsize=128)
def compiled(pattern: str, where: str) -> Any:
    """Compile a pattern. Raises InputError, which begins with ``where``, if it is not valid or repeats too often."""
    import regex  # slow

    if prod(max(1, int(count)) for count in _COUNT.findall(pattern)) > MOST_REPEATS:
        raise InputError(f"{where}{pattern!r} repeats more than {MOST_REPEATS:,} times: lower the counts in braces")
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise InputError(f"{where}{pattern!r} is not a regular expression: {error}") from error


class TimeLimit:
    """Processor time for the patterns that are matched against one text."""

    def __init__(self) -> None:
        self._end = time.process_time() + SECONDS

    @property
    def left(self) -> float:
        """Seconds left. Raises TimeoutError if there are none."""
        seconds = self._end - time.process_time()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class _OutOfBudgetError(Exception):
    """One text used up its rules."""


def error_counter(schema: Mapping[str, Any], file: str) -> ErrorCounter:
    """Return the counter of errors under a schema, given as a table or, if ``file`` is set, as a JSON file.

    Raises InputError if the package is missing, the file cannot be read, or the schema is not valid, refers to another
    document, or has a pattern that is not a regular expression.
    """
    if file:
        return _compiled(_read(file), f"schema_file = '{file}'")
    try:
        return _compiled(json.dumps(schema), "schema")
    except TypeError as error:
        raise InputError(f"json_format: schema has a value that JSON lacks ({error}): write it as text") from error


class ErrorCounter:
    """Number of errors of a JSON value under one valid schema, within a budget of rules and of time for patterns.

    ``kind`` is jsonschema's validator class for the schema; error messages begin with ``where``.
    """

    def __init__(self, schema: dict[str, Any], kind: Any, *, has_patterns: bool, where: str) -> None:
        self._library = needed("jsonschema", "schema", where)
        self._referencing = needed("referencing", "schema", where)
        self._where = where
        self._longest = LONGEST if has_patterns else LONGEST_WITHOUT
        self._rules_left = 0
        self._time = TimeLimit()
        # jsonschema matches patterns with ``re``, which has no time limit.
        rules = {
            **kind.VALIDATORS,
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties,
        }
        kind = self._library.validators.extend(kind, {name: self._limited(rule) for name, rule in rules.items()})
        # The kind is chosen. Below a reference to the root, "$schema" would choose it again, without the limits.
        schema = {key: value for key, value in schema.items() if key != "$schema"}
        # With an empty registry no reference leads out of the schema, and none asks the network.
        self._validator = kind(schema, registry=self._referencing.Registry())

    def __call__(self, source: str, value: Any) -> int | None:
        """Return the number of errors of the value of a text; None if it cannot be judged within the budget.

        Raises InputError if a reference of the schema cannot be resolved.
        """
        if len(source) > self._longest:
            return None
        self._rules_left, self._time = MOST_RULES, TimeLimit()
        try:
            return sum(1 for _ in islice(self._validator.iter_errors(value), MOST_ERRORS))
        except (_OutOfBudgetError, TimeoutError, RecursionError, ArithmeticError):
            return None
        except (self._referencing.exceptions.Unresolvable, AttributeError) as error:
            raise InputError(f"{self._where} cannot be resolved ({error}): correct its references") from error

    def _limited(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        def apply(*arguments: Any) -> Any:
            self._rules_left -= 1
            if self._rules_left < 0:
                raise _OutOfBudgetError
            return rule(*arguments)

        return apply

    def _matches(self, pattern: str, text: str) -> bool:
        return compiled(pattern, f"{self._where}: ").search(text, timeout=self._time.left) is not None

    def _pattern(self, validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[Exception]:
        if validator.is_type(instance, "string") and not self._matches(pattern, instance):
            yield self._library.ValidationError(f"{instance!r} does not match {pattern!r}")

    def _pattern_properties(
        self, validator: Any, schemas: Mapping[str, Any], instance: Any, _: Any
    ) -> Iterator[Exception]:
        if not validator.is_type(instance, "object"):
            return
        for pattern, schema in schemas.items():
            for key, value in instance.items():
                if self._matches(pattern, key):
                    yield from validator.descend(value, schema, path=key, schema_path=pattern)

    def _additional_properties(self, validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Exception]:
        if not validator.is_type(instance, "object"):
            return
        names, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        extras = [
            key for key in instance if key not in names and not any(self._matches(each, key) for each in patterns)
        ]
        if validator.is_type(allowed, "object"):
            for key in extras:
                yield from validator.descend(instance[key], allowed, path=key)
        elif not allowed and extras:
            yield self._library.ValidationError(f"additional properties: {extras}")


def _read(file: str) -> str:
    try:
        return expanded(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text, or not a path"
        raise InputError(f"json_format: schema_file = '{file}': cannot be read: {reason}") from error


@lru_cache(maxsize=8)
def _compiled(text: str, where: str) -> ErrorCounter:
    where = f"json_format: {where}"
    library = needed("jsonschema", "schema", where)
    try:
        schema = json_of(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error})") from error
    if not isinstance(schema, dict):
        raise InputError(f"{where} must be a JSON object, not {type(schema).__name__}")
    try:
        kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
        kind.check_schema(schema)
        patterns = list(_patterns(schema, where, schema))
    except (RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"{where} is not a JSON Schema ({type(error).__name__}: {error})") from error
    except library.SchemaError as error:
        path = "/".join(map(str, error.absolute_path))
        raise InputError(f"{where}{' at ' + path if path else ''}: {error.message[:200]}") from error
    for pattern in patterns:
        compiled(pattern, f"{where}: ")
    if '"unevaluatedProperties"' in text and '"patternProperties"' in text:
        raise InputError(
            f"{where}: unevaluatedProperties would match patternProperties without a time limit: use "
            "additionalProperties"
        )
    return ErrorCounter(schema, kind, has_patterns=bool(patterns), where=where)


def _check_reference(reference: str, root: Any, where: str) -> None:
    """Raise InputError if a path within the document does not lead to a schema."""
    target = root
    for part in reference.removeprefix("#/").split("/"):
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            target = target[int(name)] if isinstance(target, list) else target[name]
        except (KeyError, ValueError, IndexError, TypeError):
            target = None
    if not isinstance(target, dict | bool):
        raise InputError(f'{where}: $ref = "{reference}" does not lead to a schema: define it there')


def _patterns(schema: Any, where: str, root: Any) -> Iterator[str]:
    """Yield the patterns of a schema. Raise InputError if it refers to another document or to nothing."""
    if isinstance(schema, list):
        for item in schema:
            yield from _patterns(item, where, root)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
            raise InputError(f'{where}: {key} = "{value}" refers to another document: copy it into $defs')
        if key == "$ref" and isinstance(value, str) and value.startswith("#/"):
            _check_reference(value, root, where)
        if key == "pattern" and isinstance(value, str):
            yield value
        if key == "patternProperties" and isinstance(value, dict):
            yield from value
        if key in _BY_NAME and isinstance(value, dict):
            # The keys are the user's names, which may be "default" or "pattern" too.
            for subschema in value.values():
                yield from _patterns(subschema, where, root)
        elif key not in ("const", "enum", "default", "examples"):
            yield from _patterns(value, where, root)
