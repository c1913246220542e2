"""Rows out of files: JSON lines, CSV and Parquet.

A reader gives every row with its place, and a reason instead of the row where it cannot be read: nothing is left out in
silence. It raises InputError where the whole file cannot be read.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.system.optional_packages import needed

FORMATS: Mapping[str, str] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
"""File name's end -> format."""
ROWS_AT_ONCE = 1024
_OTHER_ENCODINGS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"PK\x03\x04", "a zip archive or spreadsheet"))


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        place: where it stands, for a reader: "line 7" or "row 7", counted from 1.
        values: column -> value; None where it could not be read.
        reason: why not.
    """

    place: str
    values: Mapping[str, Any] | None
    reason: str = ""


def kind_of(value: Any) -> str:
    """What JSON calls a value: "a number", "an object"; another type by its own name."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def format_of(path: Path, chosen: str = "") -> str:
    """The format of a file by what was chosen or by its name. Raises InputError where neither says it."""
    known = sorted(set(FORMATS.values()))
    found = chosen or FORMATS.get(path.suffix.lower(), "")
    if not found:
        raise InputError(f"path = '{path}': its name does not say its format: add format = one of {', '.join(known)}")
    if found not in known:
        raise InputError(f"format = '{chosen}'{nearest(chosen, known)}: write one of {', '.join(known)}")
    return found


def read(path: Path, format: str, *, delimiter: str = "") -> Iterator[Row]:
    """The rows of a file; empty lines are no rows."""
    if format == "parquet":
        return parquet(path)
    return json_lines(path) if format == "jsonl" else comma_separated(path, delimiter)


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


def json_lines(path: Path) -> Iterator[Row]:
    """One JSON object a line, in UTF-8; a byte order mark at the beginning is passed over."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(f"line {number}", line)


def _json_row(place: str, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Row(place, None, "not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return Row(place, None, f"not JSON ({' '.join(str(error).split())[:80]})")
    if not isinstance(row, dict):
        return Row(place, None, f"{kind_of(row)}, not an object with columns")
    return Row(place, row)


def comma_separated(path: Path, delimiter: str = "") -> Iterator[Row]:
    """CSV with a line of column names, in UTF-8; quoted fields may hold line breaks. A row of another length is broken.

    Args:
        delimiter: one character; "" takes a tab for names that end in .tsv, else a comma.

    Raises:
        InputError: no column names, two of one name, or the file cannot be read.
    """
    between = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    if len(between) != 1 or between in '"\r\n':
        raise InputError(f"delimiter = {delimiter!r}: must be one character, such as ';'")
    with _opened(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, _any_size():
        reader = csv.reader(file, delimiter=between, strict=True)
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise InputError(f"path = '{path}', line 1: {error}") from error
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(names)):
            raise InputError(
                f"path = '{path}', line 1: not UTF-8 text: save the file as 'CSV UTF-8' (Chinese spreadsheets write GBK)"
            )
        if len(set(names)) < len(names) or not any(names):
            raise InputError(f"path = '{path}': line 1 must give each column a name of its own, and gives {names[:8]}")
        while True:
            place = f"line {reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(place, None, f"not CSV ({error})")
                continue
            if fields:
                yield _csv_row(place, names, fields)


def _csv_row(place: str, names: list[str], fields: list[str]) -> Row:
    if len(fields) != len(names):
        return Row(place, None, f"{len(fields)} fields where line 1 names {len(names)} columns")
    return Row(place, dict(zip(names, fields, strict=True)))


@contextmanager
def _any_size() -> Iterator[None]:
    """Fields of any size: csv's own limit stops the reader in the middle of a row."""
    before = csv.field_size_limit()
    limit = sys.maxsize
    with suppress(OverflowError):
        csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file. Raises InputError where pyarrow is missing, or takes it for none."""
    library = needed("pyarrow.parquet", "parquet", f"path = '{path}'")
    with _opened(path):
        pass
    try:
        file = library.ParquetFile(path)
        if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
            raise InputError(f"path = '{path}': two columns have one name")
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", values)
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these kinds
        raise InputError(f"path = '{path}': not a whole Parquet file ({' '.join(str(error).split())[:120]})") from error
