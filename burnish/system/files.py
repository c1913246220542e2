"""Files written atomically and durably, and operating-system errors explained in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from burnish.errors import BurnishError

LARGEST_TEXT = 1 << 28
"""Bytes of the largest JSON or TOML file that is read at once."""


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: written next to it, synced to disk, then renamed."""
    write_parts(path, [text.encode("utf-8", "backslashreplace")])


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Replace a file by these bytes, one part after the other, as ``write_text`` does. The old one can be read meanwhile."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with new_file(temporary) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_file(path: Path) -> BinaryIO:
    """Open a file that is new for writing: what has its name is removed first, and a link is never followed."""
    remove(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666), "wb")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one. What a link leads to stays."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(path)


def regular_bytes(path: Path, limit: int = LARGEST_TEXT) -> bytes:
    """Return the bytes of a file. Raises OSError if it is a link, no regular file, or larger than ``limit`` bytes.

    A pipe or a device, which might never end, is not waited for.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, more than {limit:,}", str(path))
        return file.read(size)  # room for all that may be read is taken at once


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError if it is a link or no regular file; a pipe is not waited for."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | flags), "rb")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return file


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that atomically becomes ``target``, synced to disk, or is deleted on an exception."""
    temporary = target.with_name(f".{target.name}.partial")
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        follow_umask(temporary)
        sync_tree(temporary)
        os.rename(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace a file atomically by indented JSON."""
    write_text(path, json_text(value))


def json_text(value: Any, indent: int | None = 1, *, of: str = "") -> str:
    """Return JSON with a final newline; ``indent`` None puts it on one line; ``of`` begins the error.

    Raises BurnishError, with the key, if a number is not finite: JSON has none.
    """
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    except ValueError as error:
        key, number = next(_not_finite(value), ("", None))
        if number is None:
            raise
        raise BurnishError(f"{of}{key} is {number}: a number must be finite to be kept") from error


def json_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> bytes:
    """Return rows as lines of JSON. Raises BurnishError as ``json_text`` does, which names the path they are for."""
    text = "".join(json_text(row, indent=None, of=f"{path}: ") for row in rows)
    # Lone surrogates (half an emoji, cut off at the token limit) cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace")


def _not_finite(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, one in items:
        yield from _not_finite(one, f"{key}.{name}" if key else str(name))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable, if it exists."""
    if path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Make all files below a folder durable, then the folders."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(parent) / name)
        sync_folder(Path(parent))


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the mode of a new one: safetensors makes its files private to their owner."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".mode-") as inner:
        (Path(inner) / "new").touch()
        mode = (Path(inner) / "new").stat().st_mode
    for parent, _, names in os.walk(folder):
        for name in names:
            (Path(parent) / name).chmod(mode & 0o777)


@contextmanager
def explained(what: str, then: str = "") -> Iterator[None]:
    """Turn an operating-system error into a BurnishError of one line that names the fix."""
    try:
        yield
    except OSError as error:
        fixes = {
            errno.ENOSPC: then or "the disk is full: make room and try again",
            errno.EDQUOT: then or "the quota is used up: make room and try again",
            errno.EACCES: "choose a folder you may write to",
            errno.EPERM: "choose a folder you may write to",
            errno.EROFS: "choose a folder on a disk that can be written to",
            errno.ENOTDIR: "part of that path is a file: choose another folder",
            errno.EEXIST: "a file of that name is in the way: choose another folder",
            errno.ENOENT: "its folder does not exist, or was moved or removed",
        }
        fix = fixes.get(error.errno or 0, then)
        raise BurnishError(f"{what}: {error.strerror or error}{': ' + fix if fix else ''}") from error
    except Exception as error:
        # safetensors reports a full disk as its own kind of error.
        if type(error).__name__ != "SafetensorError":
            raise
        raise BurnishError(f"{what}: {error}{': ' + then if then else ''}") from error
