"""Cache folder: locks, disk errors, accepted terms, and atomic publication of folders."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer
from burnish.system.paths import home as home

MARKER = "burnish.json"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


@contextmanager
def cache_errors(what: str) -> Iterator[None]:
    """Turn a disk error into BurnishError, or InputError if the folder is not writable, that names the fix."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise no_room(what) from error
        if error.errno in _NO_RIGHT:
            raise InputError(
                f"{what}: cannot write to {home()} ({error.strerror}): set BURNISH_HOME to a folder that can be written"
            ) from error
        raise BurnishError(f"{what}: {error}; if {home()} is at fault, set BURNISH_HOME to another folder") from error


def no_room(what: str, needed: int | None = None) -> BurnishError:
    """Return the error for a disk without enough space; ``needed`` is in bytes, if known."""
    amount = f" (about {megabytes(needed)} are needed)" if needed else ""
    return BurnishError(
        f"{what}: no space left in {home()}{amount}: free some, or set BURNISH_HOME to a folder on another disk"
    )


def accept(terms: str) -> None:
    """Record that the user has accepted these terms. Raises the errors of ``cache_errors``."""
    with cache_errors("noting that terms were accepted"):
        (home() / "licences").mkdir(parents=True, exist_ok=True)
        (home() / "licences" / terms).write_text("accepted\n", encoding="utf-8")


def accepted(terms: str) -> bool:
    """Whether the terms have been accepted on this machine, or are empty."""
    return not terms or (home() / "licences" / terms).is_file()


def megabytes(size: int) -> str:
    """Return a size as text, such as "98 MB" or "385 kB"."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


@contextmanager
def workplace(name: str, what: str, observer: Observer | None = None) -> Iterator[Path]:
    """Context with an empty temporary folder inside the cache, under the lock of this name; removed afterwards."""
    from filelock import FileLock, Timeout

    locks, temporary = home() / "locks", home() / "tmp" / name
    with cache_errors(what):
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if observer:
                observer.message(f"waiting: another process is {what}")
            lock.acquire()
        except NotImplementedError as error:
            raise InputError(
                f"{what}: the disk of {home()} has no file locks: set BURNISH_HOME to a folder on a local disk"
            ) from error
    try:
        # The system releases a lock when its holder dies, so this is what a killed process left.
        shutil.rmtree(temporary, ignore_errors=True)
        folder = temporary / secrets.token_hex(8)
        with cache_errors(what):
            folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


def publish(built: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Sync a finished folder and move it to ``target``, whole or not at all; a broken folder there is replaced.

    The marker in it, written last, holds ``facts`` and the size of every file.
    """
    files = [path for path in sorted(built.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(built).as_posix(): path.stat().st_size for path in files}
    marker = built / MARKER
    marker.write_text(json.dumps({**facts, "sizes": sizes}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in [*files, marker, *{path.parent for path in files}, built]:
        _sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(built.parent / f"broken-{secrets.token_hex(4)}")
    built.rename(target)
    _sync(target.parent)


def published(folder: Path) -> Mapping[str, Any] | None:
    """Return the facts of a published folder, or None if it is missing or the size of a file has changed."""
    try:
        facts = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        whole = all((folder / path).stat().st_size == size for path, size in facts["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return facts if whole and facts["sizes"] else None


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no descriptor for a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
