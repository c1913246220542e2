"""Rows from files of every supported format: one file, a pattern of files, or a saved data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from burnish.data.columnar import read_arrow, read_parquet, saved_files
from burnish.data.files import RawRow, file_format, matching_files
from burnish.data.text_files import read_csv, read_json


def read_files(path: Path, format: str = "", *, delimiter: str = "", side: str = "train") -> Iterator[RawRow]:
    """Yield the rows of a file, of all files that match a pattern, or of a folder saved by the package ``datasets``.

    Where there are several files, a position begins with the file's name.

    Args:
        format: the format of all of them; if empty, the one of each file's suffix.
        delimiter: the delimiter of CSV files.
        side: the split to read of a saved ``DatasetDict``.
    """
    files = saved_files(path, side) if path.is_dir() and not format else matching_files(path)
    for file in files:
        for row in read_file(file, file_format(file, format), delimiter=delimiter):
            yield row if len(files) == 1 else replace(row, position=f"{file.name}, {row.position}")


def read_file(path: Path, format: str, *, delimiter: str = "") -> Iterator[RawRow]:
    """Yield the rows of one file. Empty lines are skipped."""
    if format in ("parquet", "arrow"):
        return read_parquet(path) if format == "parquet" else read_arrow(path)
    return read_csv(path, delimiter) if format == "csv" else read_json(path, lines=format == "jsonl")
