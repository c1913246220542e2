"""The layers in which a program is a process of this system's Python: behind Linux's walls, or behind none."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.sandbox.folder import environment, remove
from burnish.sandbox.linux.supervise import attend, job_file
from burnish.sandbox.names import NONE
from burnish.sandbox.verdict import START_SECONDS, Limits, Unavailable, Verdict

_TICK = 0.1
_PACKAGE = Path(__file__).resolve().parents[3]
_NO_PROGRAM = {"source": "", "name": "", "seconds": 10.0, "memory": 1 << 30}


class Server:
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

    def run(self, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        return attend(self.start, self.programs, self.layer, work, limits, answers)

    def start(self, descriptors: Sequence[int]) -> None:
        """Has a program started that the descriptors of ``server.watch`` are for."""
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


class NoWalls:
    """A fresh Python for each program, with limits and a session of its own, and nothing that keeps it in."""

    layer = NONE

    def run(self, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        return attend(self._start, None, self.layer, work, limits, answers)

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        """There is nothing to end: each program's process is waited for."""

    def _start(self, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        asked = {"package": str(_PACKAGE), "layer": NONE, "descriptors": list(descriptors)}
        return _python(asked, descriptors, "/", stderr=subprocess.DEVNULL)


def _python(asked: object, passed: Sequence[int], folder: str, *, stderr: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", str(Path(__file__).with_name("child.py")), json.dumps(asked)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder, env=environment(folder),
        pass_fds=passed, start_new_session=True,
    )  # fmt: skip
