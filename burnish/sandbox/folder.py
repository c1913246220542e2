"""Temporary folder of a program: creation, limits on its content, and removal."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator

MAX_ENTRIES = 100
"""Low, since removing a folder takes milliseconds on some file systems."""
MAX_BYTES = 64 << 20


@contextlib.contextmanager
def temporary_folder(parent: str | None = None) -> Iterator[str]:
    """Create an empty folder for this user only, by default in the system's; remove it with its content on exit."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="burnish-sandbox-", dir=parent))
    try:
        yield folder
    finally:
        remove_folder(folder)


def program_environment(folder: str) -> dict[str, str]:
    """Return all environment variables that a program sees."""
    return {
        "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1",
        # Fixes the order of sets of strings, so that a program's reward is reproducible.
        "PYTHONHASHSEED": "0",
    }  # fmt: skip


def exceeded_limit(folder: str) -> str | None:
    """Return the limit that the folder's content exceeds, or None. An inaccessible subfolder counts as exceeding it."""
    entries, size = 0, 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        size += _on_disk(entry.path)
                    if entries > MAX_ENTRIES:
                        return f"made more than {MAX_ENTRIES} files"
        except (FileNotFoundError, NotADirectoryError):
            continue  # the program has just removed it
        except OSError as error:
            return f"made a folder that cannot be listed ({error.strerror})"
    return f"wrote more than {MAX_BYTES >> 20} MB of files" if size > MAX_BYTES else None


def _on_disk(path: str) -> int:
    """Return the bytes that a file occupies on disk; on Windows, its length."""
    # Not ``DirEntry.stat``, whose size is out of date on Windows while the file is open.
    status = os.stat(path, follow_symlinks=False)
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size


def remove_folder(folder: str) -> None:
    """Remove a program's folder, whatever it contains. Raises OSError if an entry cannot be removed.

    ``shutil.rmtree`` fails on folders without permissions and on trees deeper than the longest path. This function
    makes each folder accessible and moves its subfolders to the top before removing it. It follows no symbolic links.
    """
    while entries := _entries(folder):
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _flatten(entry.path, folder)
            else:
                os.unlink(entry.path)
    os.rmdir(folder)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return list(listing)


def _flatten(inner: str, top: str) -> None:
    os.chmod(inner, 0o700)
    for entry in _entries(inner):
        if entry.is_dir(follow_symlinks=False):
            # Moving a folder rewrites its "..", so the folder itself must be writable.
            os.chmod(entry.path, 0o700)
            os.rename(entry.path, os.path.join(top, secrets.token_hex(16)))
        else:
            os.unlink(entry.path)
    os.rmdir(inner)
