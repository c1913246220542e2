"""The rows of a recipe's source, without the model."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.data.rows import BrokenRow, Rows
from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.supervised.recipe import Data
from burnish.supervised.sources import SOURCES


def read_rows(data: Data, *, offline: bool = False, observer: Observer | None = None) -> Rows:
    """Return the rows of a recipe's source.

    Raises:
        InputError: the source cannot be read, has no usable row, or more broken rows than ``data.max_broken`` allows.
    """
    source = SOURCES.get(data.use)(**data.options)
    rows = source.rows(held_out_percent=data.held_out_percent, offline=offline, observer=observer)
    refuse_broken(rows.broken, len(rows.rows) + len(rows.broken), data)
    if not rows.rows:
        raise InputError(f"data: {rows.origin or data.use} has no rows: nothing to learn from")
    return rows


def refuse_broken(broken: Sequence[BrokenRow], total: int, data: Data) -> None:
    """Raise InputError if more rows are broken than ``data.max_broken`` allows."""
    if len(broken) > data.max_broken * total:
        first = broken[0]
        raise InputError(
            f"data: {len(broken)} of {total} rows cannot be used, the first is {first.position}: {first.reason}; "
            f"correct them, or raise data.max_broken (now {data.max_broken})"
        )
