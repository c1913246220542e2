"""Values of a row by the path of a field: ``answer``, ``reward_model.ground_truth``, ``choices.0.text``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from typing import Any

from burnish.data.files import json_type
from burnish.registry import nearest

DEPTH = 3
"""Levels of a row whose paths a hint lists."""
HINTED = 1000
"""The most paths of a row that a hint looks at."""
_MISSING = object()


def has_field(row: Mapping[str, Any], path: str) -> bool:
    """Return whether a row has a value at a path."""
    return _walk(row, path) is not _MISSING


def field(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path: a column's name, or keys and indices of what it holds, separated by dots.

    A column whose own name has dots comes first. JSON text in a column is decoded on the way, since CSV has only text.

    Raises:
        ValueError: the row has no such value; the message names the nearest path.
    """
    value = _walk(row, path)
    if value is _MISSING:
        known = list(islice(field_paths(row), HINTED))
        last = [one for one in known if one.rpartition(".")[2] == path.rpartition(".")[2]]
        hint = f" (did you mean '{last[0]}'?)" if last else nearest(path, known)
        raise ValueError(f"no column '{path}'{hint}; it has {', '.join(list(map(str, row))[:8])}")
    return value


def field_paths(value: Any, prefix: str = "", depth: int = DEPTH) -> Iterator[str]:
    """Yield the paths of a row's fields, outer ones first."""
    if not isinstance(value, Mapping) or depth == 0:
        return
    for key in value:
        yield f"{prefix}{key}"
    for key, inner in value.items():
        yield from field_paths(inner, f"{prefix}{key}.", depth - 1)


def _walk(value: Any, path: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _MISSING
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        head, dot, rest = path.partition(".")
        while dot:
            if head in value and (inner := _walk(value[head], rest)) is not _MISSING:
                return inner
            more, dot, rest = rest.partition(".")
            head = f"{head}.{more}"
        return _MISSING
    head, dot, rest = path.partition(".")
    if not isinstance(value, list) or not head.isdecimal() or int(head) >= len(value):
        return _MISSING
    return _walk(value[int(head)], rest) if dot else value[int(head)]


def as_text(value: object, name: str) -> str:
    """Return a value as text: text itself, a date in ISO 8601, a decimal with its digits, other values as JSON.

    Raises:
        ValueError: JSON does not have such a value.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    try:
        return str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"'{name}' is {json_type(value)} that JSON does not have") from None
