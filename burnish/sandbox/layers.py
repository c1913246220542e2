"""Which walls stand around programs here: the strongest that hold, found out once and kept up for all programs.

| layer | walls |
|---|---|
| ``namespaces`` | no process, network or file of outside is there (see ``namespaces``), and what ``landlock`` has |
| ``landlock`` | Landlock and seccomp: what is outside can be told of, and not be reached |
| ``none`` | limits on time, memory and output only: the program can do what its user can |
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from burnish.errors import BurnishError, InputError
from burnish.sandbox.folder import remove
from burnish.sandbox.server import LANDLOCK, NAMESPACES, NONE

STRONGEST = "strongest"
STRONG = (NAMESPACES, LANDLOCK)
CHOICES = (STRONGEST, *STRONG, NONE)
TITLES = {
    NAMESPACES: "namespaces + landlock + seccomp",
    LANDLOCK: "landlock + seccomp",
    NONE: "none: limits alone",
}
START_SECONDS = 30.0
_TICK = 0.1
_PACKAGE = Path(__file__).resolve().parents[2]
_NO_PROGRAM = {"source": "", "name": "", "seconds": 10.0, "memory": 1 << 30}


class Unavailable(BurnishError):
    """A layer does not stand here, for the reason that the message gives in one line."""


class Walls(Protocol):
    """Starts programs within one layer."""

    @property
    def layer(self) -> str: ...

    @property
    def programs(self) -> str | None:
        """The folder for the programs' own folders; None for the usual place."""
        ...

    def start(self, descriptors: Sequence[int]) -> subprocess.Popen[bytes] | None:
        """Starts the program that the descriptors of ``server.watch`` are for, and returns what is to be waited for."""
        ...


def checked(layer: str) -> str:
    """The name of a layer, or of the choice among them. Raises InputError where there is none of that name."""
    if layer not in CHOICES:
        raise InputError(f"sandbox = {layer!r}: must be one of {', '.join(CHOICES)}")
    return layer


def unavailable() -> str | None:
    """Why this machine can have no strong layer, in one line; None where it can, as far as can be told beforehand."""
    if sys.platform != "linux":
        return f"the sandbox needs Linux with Landlock and seccomp; this is {platform.system() or sys.platform}"
    # walls is imported for its compiled form to be kept: the child writes none.
    from burnish.sandbox import kernel, landlock, walls  # noqa: F401

    if kernel.machine() not in kernel.ARCHITECTURES or struct.calcsize("P") != 8:
        known = " or ".join(kernel.ARCHITECTURES)
        return f"the sandbox knows the system calls of 64-bit {known}; this is {kernel.machine()}"
    if not landlock.version():
        return "the sandbox needs a kernel with Landlock (Linux 5.13 or newer, and 'landlock' among its active LSMs)"
    return None


def standing(layer: str = STRONGEST) -> Walls:
    """The walls of a layer, put up and tried by attacks from inside that had to fail, when they are first asked for.

    Args:
        layer: one of ``CHOICES``; ``STRONGEST`` is never ``NONE``.

    Raises:
        Unavailable: no such walls stand here.
        InputError: there is no such layer.
    """
    if checked(layer) == NONE:
        if os.name != "posix":
            raise Unavailable(f"programs can be run on Linux and other POSIX systems only; this is {platform.system()}")
        return _NO_WALLS
    reason = unavailable()
    if reason:
        raise Unavailable(reason)
    with _lock:
        reasons = []
        for name in STRONG if layer == STRONGEST else (layer,):
            server = _servers.get(name)
            if server is not None and server.alive():
                return server
            if server is not None:
                server.close()
                del _servers[name]
            elif name in _failed and layer == STRONGEST:
                continue
            try:
                _servers[name] = _Server(name)
                return _servers[name]
            except Unavailable as error:
                _failed[name] = str(error)
                reasons.append(f"{TITLES[name]}: {error}")
        raise Unavailable("; ".join(reasons or [f"{TITLES[name]}: {_failed[name]}" for name in STRONG]))


def close() -> None:
    """Ends the processes that start programs, and removes their folders; the next program starts them anew."""
    with _lock:
        for server in _servers.values():
            server.close()
        _servers.clear()
        _failed.clear()


def environment(folder: str) -> dict[str, str]:
    """All variables that a program sees."""
    return {
        "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1",
        # The order of a set of words is the same in every run, so that a reward is.
        "PYTHONHASHSEED": "0",
    }  # fmt: skip


@contextlib.contextmanager
def job_file(job: object) -> Iterator[int]:
    """A file in memory with a job as JSON, to be read from its beginning."""
    with contextlib.ExitStack() as kept:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("job")
            kept.callback(os.close, descriptor)
        else:
            descriptor = kept.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
        left = memoryview(json.dumps(job).encode())
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor


class _Server:
    """A process that forks one for each program (see ``server``), behind the walls of one layer."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self._owner = os.getpid()
        self._home = os.path.realpath(tempfile.mkdtemp(prefix="burnish-sandboxes-"))
        self.programs = os.path.join(self._home, "programs")
        for name in ("root", "programs"):
            os.mkdir(os.path.join(self._home, name), 0o700)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {"package": str(_PACKAGE), "layer": layer, "home": self._home, "channel": theirs.fileno()}
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = _python(asked, [theirs.fileno()], self._home, stderr=errors)
            theirs.close()
            try:
                self._begin(errors)
            except BaseException:
                self.close()
                raise

    def _begin(self, errors: Any) -> None:
        waited = 0.0
        while not select.select([self._channel], [], [], _TICK)[0]:
            # Counted, not looked up: a clock goes on while this process is stopped, and the other one with it.
            waited += _TICK
            if waited > START_SECONDS:
                raise Unavailable(f"Python did not start within {START_SECONDS:g} s")
        said = self._channel.recv(1 << 16).decode("utf-8", "backslashreplace")
        if said != "ready":
            errors.seek(0)
            last = (errors.read().decode("utf-8", "backslashreplace").strip().splitlines() or [""])[-1]
            reason = said.removeprefix("refused: ") or last or "Python ended before it began"
            raise Unavailable(reason)
        refusal = self._tried()
        if refusal:
            raise Unavailable(refusal)

    def _tried(self) -> str | None:
        """Why a program could not be run, by an empty one; its process attacks its walls as each does."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        with ours, theirs, open(read, "rb") as report, job_file(_NO_PROGRAM | {"folder": self.programs}) as job:
            try:
                self.start([theirs.fileno(), job, null, null, write])
            finally:
                os.close(write)
                os.close(null)
            said = report.read().decode("utf-8", "backslashreplace")
            theirs.close()
            ours.recv(1)  # its watcher's word that it has ended
        return None if said == "ready\n" else said.removeprefix("refused: ") or "a program could not be started"

    def alive(self) -> bool:
        """Whether it can start programs for this process, and not for one that this is a copy of."""
        return self._owner == os.getpid() and self._process.poll() is None and os.path.isdir(self.programs)

    def start(self, descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self._channel, [b"x"], descriptors)
        except OSError as error:
            raise Unavailable(f"the process that starts programs is gone ({error.strerror})") from error

    def close(self) -> None:
        if self._owner != os.getpid():
            self._channel.close()
            return
        with contextlib.suppress(OSError):
            # Heard even where a copy of this process holds the channel too.
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            remove(self._home)


class _NoWalls:
    """A fresh Python for each program, with limits and a session of its own, and nothing that keeps it in."""

    layer = NONE
    programs = None

    def start(self, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        asked = {"package": str(_PACKAGE), "layer": NONE, "descriptors": list(descriptors)}
        return _python(asked, descriptors, "/", stderr=subprocess.DEVNULL)


def _python(asked: object, passed: Sequence[int], folder: str, *, stderr: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", str(Path(__file__).with_name("child.py")), json.dumps(asked)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder, env=environment(folder),
        pass_fds=passed, start_new_session=True,
    )  # fmt: skip


_NO_WALLS = _NoWalls()
_lock = threading.Lock()
_servers: dict[str, _Server] = {}
_failed: dict[str, str] = {}
"""Layer -> why it does not stand here; not tried again."""


def _after_fork() -> None:
    # The copy's lock may be held by a thread that it does not have.
    global _lock
    _lock = threading.Lock()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
