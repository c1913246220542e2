"""Rows of text files: JSON lines, JSON arrays and CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from burnish.data.files import RawRow, json_type, opened, plain_suffix
from burnish.errors import InputError, one_line

WRAPPERS = ("data", "rows", "examples", "instances", "train")
"""Keys of an object whose list has the rows of a file."""
_BETWEEN = " \t\r\n,"


def read_json(path: Path, *, lines: bool = True) -> Iterator[RawRow]:
    """Yield the rows of a file of JSON lines, of a JSON array of objects, or of objects over several lines, in UTF-8.

    The content decides, not the file's name. A byte order mark is ignored.

    Args:
        lines: whether the file is expected to be JSON lines; a file that is neither is then read line by line, so that
            each broken line is listed.

    Raises:
        InputError: the file cannot be read, or is an array that is not whole.
    """
    with opened(path) as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, b""), next(filled, None)
    try:
        value = json.loads(first.decode("utf-8-sig"))
        by_line = second is not None or (isinstance(value, dict) and (lines or not _wrapped(value)))
    except (ValueError, RecursionError):
        by_line = not first.strip().removeprefix(b"\xef\xbb\xbf").startswith((b"[", b"{"))
    if by_line:
        return read_json_lines(path)
    try:
        with opened(path) as file:
            values = _rows_of(list(json_values(file.read().decode("utf-8-sig"))))
    except (ValueError, RecursionError) as error:
        if lines and first.strip() not in (b"[", b"{"):
            return read_json_lines(path)
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"not whole JSON ({one_line(error)})"
        raise InputError(f"path = '{path}': {reason[:160]}") from error
    apart = len({line for line, _ in values if line}) == len(values)
    return (
        _as_row(f"line {line}" if apart else f"row {number}", value)
        for number, (line, value) in enumerate(values, start=1)
    )


def read_json_lines(path: Path) -> Iterator[RawRow]:
    """Yield one row per line with a JSON object, in UTF-8. A byte order mark is ignored."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(f"line {number}", line)


def json_values(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a JSON array, or of one value after the other, each with the line of its beginning.

    Raises ValueError with line and column at the first character that is not JSON, or if the array is not closed.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    position, line, scanned = _skip(text, 0), 1, 0
    array = text[position : position + 1] == "["
    position = _skip(text, position + 1) if array else position
    while position < len(text) and not (array and text[position] == "]"):
        line, scanned = line + text.count("\n", scanned, position), position
        value, end = decoder.raw_decode(text, position)
        yield line, value
        position = _skip(text, end)
    if array and _skip(text, position + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, position + 1)
    if array and position >= len(text):
        raise json.JSONDecodeError("the array is not closed", text, len(text))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BETWEEN:
        position += 1
    return position


def _wrapped(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows of an object that only wraps them, as in ``{"data": [...]}``; None if it has several such lists."""
    lists = [
        rows
        for rows in value.values()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ]
    return lists[0] if len(lists) == 1 and any(lists[0] is value.get(key) for key in WRAPPERS) else None


def _rows_of(values: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    rows = _wrapped(values[0][1]) if len(values) == 1 and isinstance(values[0][1], dict) else None
    return values if rows is None else [(0, row) for row in rows]


def _json_row(position: str, line: bytes) -> RawRow:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        return RawRow(position, None, "not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return RawRow(position, None, f"not JSON ({one_line(error)[:80]})")
    return _as_row(position, row)


def _as_row(position: str, row: Any) -> RawRow:
    if not isinstance(row, dict):
        return RawRow(position, None, f"{json_type(row)}, not an object with columns")
    if isinstance(row, _Repeated):
        return RawRow(position, None, f"the key '{row.key[:60]}' occurs twice in an object")
    return RawRow(position, row)


class _Repeated(dict[str, Any]):
    """An object in which a key occurs twice, or that contains such an object."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, which ``json`` would give the last value of a repeated key."""
    value = dict(pairs)
    repeated = _first_repeated(pairs) if len(value) < len(pairs) else _repeated_key([*value.values()])
    if repeated is None:
        return value
    marked = _Repeated(value)
    marked.key = repeated
    return marked


def _first_repeated(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def _repeated_key(values: list[Any]) -> str | None:
    """Return the repeated key of the first object among some values, and in the lists of them, that has one."""
    waiting = values[::-1]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Repeated):
            return value.key
        if isinstance(value, list):
            waiting.extend(reversed(value))
    return None


def read_csv(path: Path, delimiter: str = "") -> Iterator[RawRow]:
    """Yield the rows of a CSV file in UTF-8, whose first line names the columns. Quoted fields may contain line breaks.

    Every value stays text. Without a ``delimiter``, it is a tab for names that end in .tsv, else a comma. A row with
    more or fewer fields than columns is broken. Raises InputError if there are no column names, two are equal, a
    quoted field is not closed, or the file cannot be read.
    """
    separator = delimiter or ("\t" if plain_suffix(path) == ".tsv" else ",")
    if len(separator) != 1 or separator in '"\r\n':
        raise InputError(f"delimiter = {delimiter!r}: must be one character, such as ';'")
    with opened(path) as raw, _any_size():
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(file, delimiter=separator, strict=True)
        names = _column_names(reader, path, separator)
        while True:
            first = reader.line_num + 1
            position = f"line {first}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):  # it has all further rows in it
                    raise InputError(f"path = '{path}', {position}: a quotation mark is not closed") from error
                lines = position if reader.line_num == first else f"lines {first} to {reader.line_num}"
                yield RawRow(lines, None, f"not CSV ({error})")
                continue
            if fields and len(fields) != len(names):
                yield RawRow(position, None, f"{len(fields)} fields where line 1 names {len(names)} columns")
            elif fields:
                yield RawRow(position, dict(zip(names, fields, strict=True)))


def _column_names(reader: Iterator[list[str]], path: Path, separator: str) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise InputError(f"path = '{path}', line 1: {error}") from error
    if any("\ud800" <= letter <= "\udfff" for letter in "".join(names)):
        raise InputError(
            f"path = '{path}', line 1: not UTF-8 text: save the file as 'CSV UTF-8' (Chinese spreadsheets write GBK)"
        )
    if len(set(names)) < len(names) or not any(names):
        raise InputError(f"path = '{path}': line 1 must name each column, all different; it has {names[:8]}")
    other = next((one for one in ";\t|," if one != separator and len(names) == 1 and one in names[0]), None)
    if other:
        raise InputError(f"path = '{path}', line 1: one column, '{names[0][:60]}': set delimiter = {json.dumps(other)}")
    return names


@contextmanager
def _any_size() -> Iterator[None]:
    """Allow fields of any size: at the csv module's own limit, the reader stops in the middle of a row."""
    before = csv.field_size_limit()
    with suppress(OverflowError):
        csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
