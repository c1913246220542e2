"""Rows from files: JSON lines, CSV and Parquet.

A reader yields every row with its position. A row that cannot be read comes with the reason instead of its values, so
that no row is lost silently. A file that cannot be read as a whole raises InputError.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from burnish.errors import InputError, one_line
from burnish.registry import nearest
from burnish.system.optional_packages import needed

FORMATS: Mapping[str, str] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
"""Suffix of a file's name -> format."""
ROWS_AT_ONCE = 1024
_OTHER_ENCODINGS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"PK\x03\x04", "a zip archive or spreadsheet"))


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read: its position ("line 7" or "row 7", from 1), and its values, or None and the reason."""

    position: str
    values: Mapping[str, Any] | None
    reason: str = ""


def json_type(value: Any) -> str:
    """Return JSON's name for the type of a value ("a number", "an object"), or Python's for other types."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def file_format(path: Path, chosen: str = "") -> str:
    """Return the chosen format of a file, or the one of its suffix. Raises InputError if it is unknown."""
    known = sorted(set(FORMATS.values()))
    name = chosen or FORMATS.get(path.suffix.lower(), "")
    if not name:
        raise InputError(f"path = '{path}': its name does not say its format: add format = one of {', '.join(known)}")
    if name not in known:
        raise InputError(f"format = '{chosen}'{nearest(chosen, known)}: write one of {', '.join(known)}")
    return name


def read_file(path: Path, format: str, *, delimiter: str = "") -> Iterator[RawRow]:
    """Yield the rows of a file. Empty lines are skipped."""
    if format == "parquet":
        return read_parquet(path)
    return read_json_lines(path) if format == "jsonl" else read_csv(path, delimiter)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            begin = file.read(4)
            if not begin:
                raise InputError(f"path = '{path}': the file is empty")
            for mark, name in _OTHER_ENCODINGS:
                if begin.startswith(mark):
                    raise InputError(f"path = '{path}': the file is {name}: save it as UTF-8 text")
            file.seek(0)
            yield file
    except OSError as error:
        raise InputError(f"path = '{path}': cannot be read: {error.strerror or error}") from error


def read_json_lines(path: Path) -> Iterator[RawRow]:
    """Yield one row per line with a JSON object, in UTF-8. A byte order mark is ignored."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(f"line {number}", line)


def _json_row(position: str, line: bytes) -> RawRow:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return RawRow(position, None, "not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return RawRow(position, None, f"not JSON ({one_line(error)[:80]})")
    if not isinstance(row, dict):
        return RawRow(position, None, f"{json_type(row)}, not an object with columns")
    return RawRow(position, row)


def read_csv(path: Path, delimiter: str = "") -> Iterator[RawRow]:
    """Yield the rows of a CSV file in UTF-8, whose first line names the columns. Quoted fields may contain line breaks.

    Without a ``delimiter``, it is a tab for names that end in .tsv, else a comma. A row with more or fewer fields than
    columns is broken. Raises InputError if there are no column names, two are equal, or the file cannot be read.
    """
    separator = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    if len(separator) != 1 or separator in '"\r\n':
        raise InputError(f"delimiter = {delimiter!r}: must be one character, such as ';'")
    with _opened(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _any_size():
        reader = csv.reader(file, delimiter=separator, strict=True)
        names = _column_names(reader, path)
        while True:
            position = f"line {reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(position, None, f"not CSV ({error})")
                continue
            if fields and len(fields) != len(names):
                yield RawRow(position, None, f"{len(fields)} fields where line 1 names {len(names)} columns")
            elif fields:
                yield RawRow(position, dict(zip(names, fields, strict=True)))


def _column_names(reader: Iterator[list[str]], path: Path) -> list[str]:
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


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file. Raises InputError if pyarrow is missing or cannot read the file."""
    library = needed("pyarrow.parquet", "parquet", f"path = '{path}'")
    with _opened(path):
        pass
    try:
        file = library.ParquetFile(path)
        if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
            raise InputError(f"path = '{path}': two columns have the same name")
        batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=ROWS_AT_ONCE))
        for number, values in enumerate(chain.from_iterable(batches), start=1):
            yield RawRow(f"row {number}", values)
    except (ValueError, OSError) as error:  # the base classes of pyarrow's errors
        raise InputError(f"path = '{path}': not a whole Parquet file ({one_line(error)[:120]})") from error
