"""JSON and TOML that somebody wrote, read strictly: from regular files, with a bound, and with every key once."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from burnish.system.files import LARGEST_TEXT

_LINE = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")


def opened_file(path: Path) -> BinaryIO:
    """Open a file of a user, perhaps reached through a link. Raises OSError if it is no regular file, such as a pipe."""
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file: write its content into one", str(path))
    return file


def given_text(path: Path, *, encoding: str = "utf-8") -> str:
    """Return the text of a file of a user.

    Raises OSError if it is no regular file or has more than 256 MiB, and UnicodeDecodeError.
    """
    with opened_file(path) as file:
        data = file.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"more than {LARGEST_TEXT:,} bytes", str(path))
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def json_of(text: str | bytes) -> Any:
    """Return the value of JSON text. Raises ValueError if it is not JSON, or an object has a key twice, which it names."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"the key '{repeated[:60]}' occurs twice in an object")
    return value


def toml_of(text: str) -> dict[str, Any]:
    """Return the value of TOML text. Raises tomllib.TOMLDecodeError, which names a key that is set twice and its line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _LINE.search(str(error))
        if found is None or not str(error).startswith(("Cannot overwrite", "Cannot declare", "Duplicate inline")):
            raise
        lines = text.rstrip().split("\n")
        number = int(found[1]) if found[1] else len(lines)
        raise tomllib.TOMLDecodeError(
            f"line {number} sets a key a second time: {lines[number - 1].strip()[:60]}"
        ) from None
