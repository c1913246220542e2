"""The forked child that runs one command: its limits, its streams, and the log of what it touches outside."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import burnish

MEMORY = 3 << 30
"""Bytes of address space that a command may add to what the server holds."""
CPU_SECONDS = 30
FILE_BYTES = 64 << 20
CRASHED = 70
"""Exit status of a command that ended with an exception, which its error stream shows."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGED: dict[str, tuple[tuple[int, int], ...]] = {
    "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),), "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),), "os.symlink": ((1, 2),), "shutil.rmtree": ((0, 1),),
}  # fmt: skip
"""Audit event -> its arguments that are entries of folders which it makes or removes, each with the open folder of it."""
_FOLLOWED = {"os.truncate": 9, "os.chmod": 2, "os.chown": 3, "os.utime": 3, "os.setxattr": 9}
"""Audit events that change the file at the end of a link, and the argument that is the open folder of its path."""


@dataclass(frozen=True)
class Place:
    """The folders of a worker: a command may write to ``work``, ``home`` and ``tmp``; ``outside`` lies beside them."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def compiled(self) -> Path:
        """The folder in which numba keeps compiled functions, beside their source."""
        return Path(burnish.__file__).parent / "policies" / "kernels" / "__pycache__"

    @property
    def log(self) -> Path:
        """The log of writes outside, one a line."""
        return self.root / "log"

    @property
    def streams(self) -> tuple[Path, Path, Path]:
        """Files in the place of standard input, output and error."""
        return self.root / "in", self.root / "out", self.root / "err"


def run_child(place: Place, arguments: Sequence[str], before: Callable[[], None] | None) -> NoReturn:
    """Run a command line of burnish in this process, which was forked for it, and end the process."""
    status = CRASHED
    try:
        os.setsid()
        _redirect(place)
        _enter(place)
        _limit()
        _watch(place)
        if before:
            before()
        status = _call(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _call(arguments: Sequence[str]) -> int:
    from burnish.cli.app import main

    sys.argv = ["burnish", *arguments]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = CRASHED
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


def _redirect(place: Place) -> None:
    for number, path in enumerate(place.streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        target = os.open(path, flags, 0o600)
        os.dup2(target, number)
        os.close(target)
    # What the server's own streams held back, or were set to, is none of the command's.
    streams = [open(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww")]  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]


def _enter(place: Place) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {
        "HOME": str(place.home), "BURNISH_HOME": str(place.home / "burnish"), "TMPDIR": str(place.tmp),
        "XDG_CACHE_HOME": str(place.home / "cache"), "COLUMNS": "120", "NO_COLOR": "1",
    }  # fmt: skip
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    sys.path[:] = [entry for entry in sys.path if entry not in ("", ".")]
    os.chdir(place.work)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(place: Place) -> None:
    """Log each change outside of the folders that the command may write to, and forbid it."""
    log = os.open(place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    # Its own path may lead through a link.
    allowed = tuple(os.path.realpath(one) + os.sep for one in (place.work, place.home, place.tmp, place.compiled))
    devices = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")

    def check(event: str, path: Any, folder: Any, *, entry: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        above, last = os.path.split(os.path.abspath(name))
        real = os.path.join(os.path.realpath(above), last) if entry else os.path.realpath(name)
        if not (real + os.sep).startswith(allowed) and not real.startswith(devices):
            os.write(log, f"{event} {real}\n".encode("utf-8", "backslashreplace"))
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), real)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        def argument(index: int) -> Any:
            return arguments[index] if index < len(arguments) else None

        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITES:
                check(event, arguments[0], None, entry=False)
        elif event in _CHANGED:
            for index, folder in _CHANGED[event]:
                check(event, arguments[index], argument(folder), entry=True)
        elif event in _FOLLOWED:
            check(event, arguments[0], argument(_FOLLOWED[event]), entry=False)

    sys.addaudithook(hook)
