"""Layers in which a program is a process of this Python: ``namespaces`` and ``landlock``, and ``none``."""

from __future__ import annotations

import contextlib
import importlib.util
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

from burnish.sandbox.folder import program_environment, remove_folder
from burnish.sandbox.linux.supervise import job_file, run_supervised
from burnish.sandbox.names import NONE
from burnish.sandbox.verdict import (
    START_SECONDS,
    Limits,
    Unavailable,
    Verdict,
    last_line,
)  # fmt: skip

_START_TICK = 0.1
_PACKAGE = Path(__file__).resolve().parents[3]
_NO_PROGRAM = {"source": "", "name": "", "seconds": 10.0, "memory": 1 << 30}


class ForkServer:
    """Runner of a confined layer: a process that forks one process per program (see ``server``)."""

    def __init__(self, layer: str, *, numpy: bool = False) -> None:
        self.layer = layer
        self._owner = os.getpid()
        self._home = os.path.realpath(tempfile.mkdtemp(prefix="burnish-sandboxes-"))
        self.programs = os.path.join(self._home, "programs")
        for name in ("root", "programs"):
            os.mkdir(os.path.join(self._home, name), 0o700)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options: dict[str, Any] = {
            "package": str(_PACKAGE),
            "layer": layer,
            "home": self._home,
            "channel": theirs.fileno(),
        }
        options |= _numpy_options(numpy)
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = _start_python(options, [theirs.fileno()], self._home, stderr=errors)
            theirs.close()
            try:
                self._wait_until_ready(errors)
            except BaseException:
                self.close()
                raise

    def _wait_until_ready(self, errors: Any) -> None:
        waited = 0.0
        while not select.select([self._channel], [], [], _START_TICK)[0]:
            # Counts ticks instead of reading a clock, which continues while both processes are suspended.
            waited += _START_TICK
            if waited > START_SECONDS:
                raise Unavailable(f"Python did not start within {START_SECONDS:g} s")
        report = self._channel.recv(1 << 16).decode("utf-8", "backslashreplace")
        if report != "ready":
            reason = report.removeprefix("refused: ") or last_line(errors) or "Python ended while it was starting"
            raise Unavailable(reason)
        refusal = self._try_empty_program()
        if refusal:
            raise Unavailable(refusal)

    def _try_empty_program(self) -> str | None:
        """Run an empty program, whose process attacks its confinement; return why it was refused, or None."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        with ours, theirs, open(read, "rb") as pipe, job_file(_NO_PROGRAM | {"folder": self.programs}) as job:
            try:
                self.start([theirs.fileno(), job, null, null, write])
            finally:
                os.close(write)
                os.close(null)
            report = pipe.read().decode("utf-8", "backslashreplace")
            theirs.close()
            ours.recv(1)  # waits for its supervisor's exit record
        return None if report == "ready\n" else report.removeprefix("refused: ") or "a program could not be started"

    def alive(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None and os.path.isdir(self.programs)

    def run(self, request: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        return run_supervised(self.start, self.programs, self.layer, request, limits, answers)

    def start(self, descriptors: Sequence[int]) -> None:
        """Ask the server to start a program with the descriptors that ``server.fork_program`` takes."""
        try:
            socket.send_fds(self._channel, [b"x"], descriptors)
        except OSError as error:
            raise Unavailable(f"the process that starts programs has ended ({error.strerror})") from error

    def close(self) -> None:
        if self._owner != os.getpid():
            self._channel.close()
            return
        with contextlib.suppress(OSError):
            # Reaches the server even if a fork of this process has the channel open too.
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            remove_folder(self._home)


class Unconfined:
    """Runner of the layer ``none``: starts Python for each program, with limits and a new session, unconfined."""

    layer = NONE

    def __init__(self, *, numpy: bool = False) -> None:
        self._numpy = numpy

    def run(self, request: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
        return run_supervised(self._start, None, self.layer, request, limits, answers)

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: no process outlives ``run``."""

    def _start(self, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"package": str(_PACKAGE), "layer": NONE, "descriptors": list(descriptors)}
        options |= _numpy_options(self._numpy)
        return _start_python(options, descriptors, "/", stderr=subprocess.DEVNULL)


def _numpy_options(numpy: bool) -> dict[str, Any]:
    """Return the folder from which ``child`` imports numpy, or none."""
    found = importlib.util.find_spec("numpy") if numpy else None
    return {"numpy": str(Path(found.origin).parents[1]) if found is not None and found.origin else None}


def _start_python(options: object, passed: Sequence[int], folder: str, *, stderr: Any) -> subprocess.Popen[bytes]:
    child = str(Path(__file__).with_name("child.py"))
    return subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", "-X", "utf8", child, json.dumps(options)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=folder, env=program_environment(folder),
        pass_fds=passed, start_new_session=True,
    )  # fmt: skip
