"""The cache folder on disk: where it is, who may write to it, and how a folder comes into it whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import BurnishError, InputError
from burnish.system.paths import home as home

if TYPE_CHECKING:
    from burnish.protocols import Observer

MARKER = "burnish.json"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what a disk can do to us into one line that names the fix.

    Raises:
        BurnishError: the disk or quota is full, or the disk failed.
        InputError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(what, error) from error


def disk_error(what: str, error: OSError) -> BurnishError:
    """The error for an OSError that happened while doing ``what``."""
    if error.errno in _NO_ROOM:
        return no_room(what)
    if error.errno in _NO_RIGHT:
        return InputError(
            f"{what}: cannot write to {home()} ({error.strerror}): set BURNISH_HOME to a folder that can be written"
        )
    return BurnishError(f"{what}: {error}; if {home()} is at fault, set BURNISH_HOME to another folder")


def no_room(what: str, needed: int | None = None) -> BurnishError:
    """The error for a disk without enough space; ``needed`` in bytes where it is known."""
    amount = f" (about {megabytes(needed)} are needed)" if needed else ""
    return BurnishError(
        f"{what}: no space left in {home()}{amount}: free some, or set BURNISH_HOME to a folder on another disk"
    )


def require_room(what: str, needed: int) -> None:
    """Raises BurnishError where fewer than ``needed`` bytes are free in the cache folder, which must exist."""
    if shutil.disk_usage(home()).free < needed:
        raise no_room(what, needed)


def accept(terms: str) -> None:
    """Notes that this user has accepted the terms of that name. Raises as ``explained`` does."""
    with explained("noting that terms were accepted"):
        (home() / "licences").mkdir(parents=True, exist_ok=True)
        (home() / "licences" / terms).write_text("accepted\n", encoding="utf-8")


def accepted(terms: str) -> bool:
    """Whether they were, on this machine, or there are none."""
    return not terms or (home() / "licences" / terms).is_file()


def megabytes(size: int) -> str:
    """Bytes for a reader: "98 MB", "385 kB"."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


@contextmanager
def workplace(name: str, what: str, observer: Observer | None = None) -> Iterator[Path]:
    """An empty temporary folder inside the cache, held under the one lock of that name; removed afterwards.

    The operating system gives the lock back when its holder dies, so whatever lies in the name's temporary folder when
    the lock is ours was left by a process that was killed, and goes.
    """
    from filelock import FileLock, Timeout

    locks, temporary = home() / "locks", home() / "tmp" / name
    with explained(what):
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
                f"{what}: the disk of {home()} knows no file locks: set BURNISH_HOME to a folder on a local disk"
            ) from error
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        folder = temporary / secrets.token_hex(8)
        with explained(what):
            folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


def publish(built: Path, place: Path, facts: Mapping[str, Any]) -> None:
    """Moves a finished folder to its place in one step, its bytes on the disk first.

    The marker written into it holds ``facts`` and the size of every file; it is written last, and the folder appears at
    ``place`` whole or not at all. What was there before and is broken makes way.
    """
    files = [path for path in sorted(built.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(built).as_posix(): path.stat().st_size for path in files}
    marker = built / MARKER
    marker.write_text(json.dumps({**facts, "sizes": sizes}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in [*files, marker, *{path.parent for path in files}, built]:
        _sync(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(built.parent / f"broken-{secrets.token_hex(4)}")
    built.rename(place)
    _sync(place.parent)


def published(place: Path) -> Mapping[str, Any] | None:
    """The facts of a folder that ``publish`` put there, or None where it is missing or a file's size has changed."""
    try:
        facts = json.loads((place / MARKER).read_text(encoding="utf-8"))
        whole = all((place / path).stat().st_size == size for path, size in facts["sizes"].items())
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
