"""A program's own folder: made empty, watched while it runs, and removed however it was left."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator

MOST_ENTRIES = 100
"""Low, as removing a folder takes some file systems milliseconds."""
MOST_BYTES = 64 << 20


@contextlib.contextmanager
def own_folder(place: str | None = None) -> Iterator[str]:
    """An empty folder that only this user can enter, in a folder or in the usual place; gone at the end, with everything
    in it."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="burnish-sandbox-", dir=place))
    try:
        yield folder
    finally:
        remove(folder)


def environment(folder: str) -> dict[str, str]:
    """All variables that a program sees."""
    return {
        "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1",
        # The order of a set of words is the same in every run, so that a reward is.
        "PYTHONHASHSEED": "0",
    }  # fmt: skip


def overfull(folder: str) -> str | None:
    """Why the folder's content is too much, or None. A folder that hides what is in it is too much as well."""
    entries, size = 0, 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        size += _on_disk(entry.path)
                    if entries > MOST_ENTRIES:
                        return f"made more than {MOST_ENTRIES} files"
        except (FileNotFoundError, NotADirectoryError):
            continue  # the program is at work in there
        except OSError as error:
            return f"made a folder that cannot be looked into ({error.strerror})"
    return f"wrote more than {MOST_BYTES >> 20} MB of files" if size > MOST_BYTES else None


def _on_disk(path: str) -> int:
    """Bytes that a file takes; its length where the system does not tell (Windows)."""
    # Not the entry's own ``stat``, which on Windows is of the time when the file was opened.
    found = os.stat(path, follow_symlinks=False)
    return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size


def remove(folder: str) -> None:
    """Removes a folder that a program has filled and left.

    Folders nested deeper than a path can be long, and folders without permissions, are what ``shutil.rmtree`` fails at:
    here each is opened up, and the folders in it are moved to the top before it goes. No symbolic link is followed.

    Raises:
        OSError: something cannot be removed.
    """
    while True:
        with os.scandir(folder) as found:
            entries = list(found)
        if not entries:
            break
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _flatten(entry.path, folder)
            else:
                os.unlink(entry.path)
    os.rmdir(folder)


def _flatten(inner: str, top: str) -> None:
    os.chmod(inner, 0o700)
    with os.scandir(inner) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            # Moving a folder writes its "..", for which it must be writable itself.
            os.chmod(entry.path, 0o700)
            os.rename(entry.path, os.path.join(top, secrets.token_hex(16)))
        else:
            os.unlink(entry.path)
    os.rmdir(inner)
