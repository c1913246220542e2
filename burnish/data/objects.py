"""Rows given as Python objects, written as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from burnish.errors import InputError, one_line

ROWS, HELD_OUT_ROWS = "rows.jsonl", "rows_held_out.jsonl"
"""Files of a run folder with the rows that its Python call gave."""
HELD_OUT_SPLITS = ("test", "validation", "valid", "dev", "eval")
"""Names of a data set's own held-out split, in the order in which they are tried."""


def rows_as_files(rows: Any) -> dict[str, str]:
    """Return rows as the files ``ROWS`` and, for data with its own held-out side, ``HELD_OUT_ROWS``: name -> content.

    Args:
        rows: an iterable of mappings, such as a list or a ``datasets.Dataset``; a pandas data frame; or splits by
            name, such as a ``DatasetDict``, of which "train" is trained on and "test" or "validation" is held out.

    Raises:
        InputError: there are no rows, a row is not a mapping, or JSON does not have one of its values.
    """
    splits = dict(rows) if isinstance(rows, Mapping) else {"train": rows}
    if "train" not in splits:
        raise InputError(f"rows: no split 'train'; it has {', '.join(map(str, splits))[:80]}")
    files = {ROWS: _lines(splits["train"], "rows")}
    held_out = next((name for name in HELD_OUT_SPLITS if name in splits), None)
    if held_out is not None:
        files[HELD_OUT_ROWS] = _lines(splits[held_out], f"rows['{held_out}']")
    return files


def _lines(rows: Any, name: str) -> str:
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)  # plain values, not tensors
    elif type(rows).__module__.partition(".")[0] == "pandas" and hasattr(rows, "columns"):
        if not rows.columns.is_unique:
            raise InputError(f"{name}: two columns of the data frame have the same name")
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")  # a missing value is not a number
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        raise InputError(f"{name}: a {type(rows).__name__}: give a list of mappings or a data set")
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}, row {number}: a {type(row).__name__}, not a mapping of columns to values")
        try:
            lines.append(json.dumps(dict(row), default=_plain) + "\n")
        except (TypeError, ValueError, RecursionError) as error:
            reason = f"{one_line(error)[:120]}: give text, numbers, lists or mappings"
            raise InputError(f"{name}, row {number}: {reason}") from error
    if not lines:
        raise InputError(f"{name}: no rows")
    return "".join(lines)


def _plain(value: Any) -> Any:
    """Return a value that JSON does not have as one that it has."""
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if type(value).__name__ == "datetime64":
        return str(value)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}")
