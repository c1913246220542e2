"""Files of rows: formats by name, patterns, decompression, and the row as read.

A reader yields every row with its position. A row that cannot be read comes with the reason instead of its values, so
that no row is lost silently. A file that cannot be read as a whole raises InputError.
"""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from burnish.errors import InputError, one_line
from burnish.registry import nearest
from burnish.system.optional_packages import needed
from burnish.system.paths import expanded

FORMATS: Mapping[str, str] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
"""Suffix of a file's name -> format."""
COMPRESSED = (".gz", ".zst")
"""Suffixes of compressed files, after the one of their format."""
LARGEST_RATIO, LEAST_LIMIT = 200, 2**28
"""Bytes that a compressed file may have for each of its own; a small one may have 256 MiB."""
_FRAME_PART = 1024
"""Compressed bytes that are decompressed at once: zstandard makes at most 32 MiB of them."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
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


def plain_suffix(path: Path) -> str:
    """Return the suffix of a file's name, in lower case, without the one of its compression."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def file_format(path: Path, chosen: str = "") -> str:
    """Return the chosen format of a file, or the one of its suffix. Raises InputError if it is unknown."""
    known = sorted(set(FORMATS.values()))
    name = chosen or FORMATS.get(plain_suffix(path), "") or ("arrow" if path.is_dir() else "")
    if not name:
        raise InputError(f"path = '{path}': its name does not say its format: add format = one of {', '.join(known)}")
    if name not in known:
        raise InputError(f"format = '{chosen}'{nearest(chosen, known)}: write one of {', '.join(known)}")
    return name


def is_data(subject: str) -> bool:
    """Return whether a name is a file, a pattern or a folder of data, and not a model or a run."""
    path = expanded(subject)
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return saved or glob.has_magic(subject) or (plain_suffix(Path(subject)) in FORMATS and not path.is_dir())


def matching_files(path: Path) -> list[Path]:
    """Return the files that a path names, in order: itself, or those that match its pattern.

    Hidden files match only a pattern that names them. Raises InputError if a pattern matches no file.
    """
    if path.exists() or not glob.has_magic(str(path)):
        refuse_special(path)
        return [path]
    first = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
    pattern = "/".join(path.parts[first:]) + ("/*" if path.name == "**" else "")
    base = Path(*path.parts[:first])
    try:
        # Links to folders are not followed: with two that lead back, there is no end of paths.
        matches = [one for one in base.glob(pattern) if one.is_file()]
    except ValueError as error:
        raise InputError(f"path = '{path}': {error}") from error
    if "/." not in f"/{pattern}":
        matches = [one for one in matches if not any(part.startswith(".") for part in one.relative_to(base).parts)]
    files = sorted(matches, key=str)
    if not files:
        raise InputError(f"path = '{path}': no file matches this pattern")
    return files


def refuse_special(path: Path) -> None:
    """Raise InputError if a path is a pipe, a device or a socket, which may block or never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"path = '{path}': not a regular file: write its content into one")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed.

    Raises InputError if it is empty, damaged, not UTF-8 text, or decompresses to far more than data does.
    """
    refuse_special(path)
    try:
        with path.open("rb") as raw, _decompressed(raw, path) as file:
            begin = file.peek(4)[:4]  # type: ignore[attr-defined]
            if not begin:
                raise InputError(f"path = '{path}': the file is empty")
            for mark, name in _OTHER_ENCODINGS:
                if begin.startswith(mark):
                    raise InputError(f"path = '{path}': the file is {name}: save it as UTF-8 text")
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"path = '{path}': not a whole compressed file ({one_line(error)[:80]})") from error
    except OSError as error:
        raise InputError(f"path = '{path}': cannot be read: {error.strerror or error}") from error


def _decompressed(raw: io.BufferedReader, path: Path) -> IO[bytes]:
    begin = raw.peek(4)
    if begin.startswith(_GZIP):
        content: Any = gzip.GzipFile(fileobj=raw)
    elif begin.startswith(_ZSTD):
        content = _ZstdFile(raw, needed("zstandard", "zstd", f"path = '{path}'"))
    else:
        return raw
    return cast("IO[bytes]", io.BufferedReader(_Bounded(content, path)))


class _Bounded(io.RawIOBase):
    """Decompressed bytes. Raises InputError where a small file would fill the memory."""

    def __init__(self, content: io.RawIOBase, path: Path) -> None:
        self.content, self.path, self.count = content, path, 0
        self.limit = max(LEAST_LIMIT, LARGEST_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.content.readinto(buffer) or 0
        self.count += count
        if self.count > self.limit:
            raise InputError(
                f"path = '{self.path}': decompresses to more than {self.limit:,} bytes: decompress it first"
            )
        return count


class _ZstdFile(io.RawIOBase):
    """The decompressed bytes of zstandard frames; a damaged frame, or one that is not whole, raises EOFError."""

    def __init__(self, raw: io.BufferedReader, library: Any) -> None:
        self.raw, self.library = raw, library
        self.frame = library.ZstdDecompressor().decompressobj()
        self.pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending:
            data = (self.frame.unused_data if self.frame.eof else b"") or self.raw.read(_FRAME_PART)
            if not data:
                if not self.frame.eof:
                    raise EOFError("the last frame is not whole")
                return 0
            if self.frame.eof:
                self.frame = self.library.ZstdDecompressor().decompressobj()
            try:
                self.pending = memoryview(self.frame.decompress(data))
            except self.library.ZstdError as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self.pending))
        buffer[:count], self.pending = self.pending[:count], self.pending[count:]
        return count
