"""One Python program, run where it can reach nothing: starts it, watches it, ends it, and says what became of it.

A process of its own under Landlock, seccomp and resource limits (see ``walls``), with an empty folder, an empty
environment, a session of its own and no open file but its output. It cannot start processes or threads, so killing
it kills all of it. Every run tries its walls before the program's first line and refuses to run where they do not hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from burnish.errors import InputError
from burnish.sandbox.child import MEMORY_STATUS
from burnish.sandbox.folder import overfull, own_folder

Status = Literal["ok", "error", "timeout", "memory", "killed", "refused"]

LEAST_MEMORY = 64
_START_SECONDS = 30.0
_TICK = 0.02
_LOOK_EVERY = 0.1
_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall-clock time, from its first line on.
        memory: MB of address space, the interpreter's own included.
        output: bytes on standard output, and as many on standard error.

    Raises:
        InputError: a limit with which nothing could run.
    """

    seconds: float = 10.0
    memory: int = 256
    output: int = 1 << 16

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 86_400:
            raise InputError(f"sandbox: seconds = {self.seconds:g} must be above 0 and at most 86400")
        if not LEAST_MEMORY <= self.memory <= 1 << 20:
            raise InputError(f"sandbox: memory = {self.memory} MB must be between {LEAST_MEMORY} and {1 << 20}")
        if self.output < 1:
            raise InputError(f"sandbox: output = {self.output} bytes must be at least 1")


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a program.

    Attributes:
        status: "ok" (exit status 0), "error" (an exception or another exit status), "timeout", "memory" (a MemoryError
            ended it), "killed" (by a signal, or for too much output or too many files), "refused" (it was not run).
        reason: the status in a few words; empty where it is "ok".
        stdout, stderr: what it wrote, up to the limit; bytes that are no UTF-8 are written as escapes.
        seconds: wall-clock time from its first line on.
        memory: MB of the largest resident set seen, looked at every 20 ms; None where it ended before the first look.
    """

    status: Status
    reason: str
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    memory: float | None = None


def unavailable() -> str | None:
    """Why this machine cannot run the sandbox, in one line; None where it can, as far as can be told beforehand."""
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


def run(source: str, *, limits: Limits = DEFAULT, name: str = "program.py") -> Verdict:
    """Runs a Python program, of the standard library only, and waits for its end.

    Args:
        source: the program.
        limits: what it may use.
        name: what its tracebacks call it.
    """
    return attend({"source": source, "name": name}, limits=limits)[0]


def attend(work: Mapping[str, Any], *, limits: Limits, answers: bool = False) -> tuple[Verdict, bytes]:
    """Runs a job of ``child`` and returns the verdict, and what came over the descriptor for answers if there is one."""
    reason = unavailable()
    if reason:
        return Verdict("refused", reason), b""
    with own_folder() as folder, contextlib.ExitStack() as kept:
        names = ("report", "answers") if answers else ("report",)
        pipes = {name: os.pipe() for name in names}
        for read, _ in pipes.values():
            kept.callback(os.close, read)
        job = {
            **work,
            **{name: write for name, (_, write) in pipes.items()},
            "folder": folder, "package": str(_PACKAGE), "parent": os.getpid(),
            "seconds": limits.seconds, "memory": limits.memory << 20,
        }  # fmt: skip
        try:
            process = _start(job, folder, [write for _, write in pipes.values()])
        finally:
            for _, write in pipes.values():
                os.close(write)
        assert process.stdout is not None and process.stderr is not None
        kept.enter_context(process.stdout)
        kept.enter_context(process.stderr)
        streams = {"stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
        streams |= {name: read for name, (read, _) in pipes.items()}
        watch = _Watch(process.pid, streams, limits, folder)
        try:
            cut = watch.until_end()
        finally:
            process.returncode = _end(process.pid)
        return watch.verdict(cut, process.returncode), bytes(watch.heard.get("answers", b""))


def _start(job: Mapping[str, Any], folder: str, passed: Sequence[int]) -> subprocess.Popen[bytes]:
    environment = {
        "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1",
        # The order of a set of words is the same in every run, so that a reward is.
        "PYTHONHASHSEED": "0",
    }  # fmt: skip
    with tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-X", "utf8", str(Path(__file__).with_name("child.py"))],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=environment,
            pass_fds=passed, start_new_session=True, bufsize=0,
        )  # fmt: skip


def _end(pid: int) -> int:
    """Kills a process that has not been waited for yet, waits, and returns its exit code as subprocess gives it."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


class _Watch:
    """Reads what a process writes until it ends or breaks a limit."""

    def __init__(self, pid: int, streams: Mapping[str, int], limits: Limits, folder: str) -> None:
        self.pid, self.limits, self.folder = pid, limits, folder
        self.streams = dict(streams)
        self.heard = {name: bytearray() for name in streams}
        self.opened = time.monotonic()
        self.begun: float | None = None
        self.ended = self.looked = self.opened
        self.peak: float | None = None

    def until_end(self) -> tuple[Status, str] | None:
        """None where the process ended by itself, else the limit that it broke."""
        with selectors.DefaultSelector() as selector, _process_descriptor(self.pid) as end:
            selector.register(end, selectors.EVENT_READ)
            for name, descriptor in self.streams.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            while True:
                ready = selector.select(_TICK)
                self.ended = time.monotonic()
                over = any(key.fd == end for key, _ in ready)
                for key, _ in ready:
                    if key.fd != end and not self._hear(key.data):
                        selector.unregister(key.fd)
                if self.begun is None and self.heard["report"].startswith(b"ready"):
                    self.begun = self.ended
                if over:
                    return self._rest()
                self._look_at_memory()
                cut = self._broken()
                if cut:
                    return cut

    def _hear(self, name: str) -> bool:
        """Reads what is there. False at the end of the stream."""
        try:
            piece = os.read(self.streams[name], 1 << 16)
        except BlockingIOError:
            return True
        self.heard[name] += piece
        return bool(piece)

    def _rest(self) -> tuple[Status, str] | None:
        """What is still in the pipes of a process that has ended."""
        for name in self.streams:
            before = -1
            while len(self.heard[name]) > before:
                before = len(self.heard[name])
                self._hear(name)
        if self.begun is None and self.heard["report"].startswith(b"ready"):
            self.begun = self.ended
        return self._too_much_output()

    def _look_at_memory(self) -> None:
        if self.begun is None:
            return
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{self.pid}/status", "rb") as lines:
            for line in lines:
                if line.startswith(b"VmHWM:"):
                    self.peak = int(line.split()[1]) / 1024

    def _broken(self) -> tuple[Status, str] | None:
        if self.begun is None:
            slow = self.ended - self.opened > _START_SECONDS
            return ("refused", f"Python did not start within {_START_SECONDS:g} s") if slow else None
        if self.ended - self.begun > self.limits.seconds:
            return "timeout", f"ran longer than {self.limits.seconds:g} s"
        if self.ended - self.looked > _LOOK_EVERY:
            self.looked = self.ended
            reason = overfull(self.folder)
            if reason:
                return "killed", reason
        return self._too_much_output()

    def _too_much_output(self) -> tuple[Status, str] | None:
        for name, heard in self.heard.items():
            if len(heard) > self.limits.output:
                return "killed", f"wrote more than {self.limits.output} bytes on {name}"
        return None

    def verdict(self, cut: tuple[Status, str] | None, code: int) -> Verdict:
        stdout, stderr = (
            bytes(self.heard[name][: self.limits.output]).decode("utf-8", "backslashreplace")
            for name in ("stdout", "stderr")
        )
        if self.begun is None:
            said = bytes(self.heard["report"]).decode("utf-8", "backslashreplace").removeprefix("refused: ")
            last = (stderr.strip().splitlines() or [""])[-1]
            reason = cut[1] if cut else said or last or f"Python ended with status {code} before the program began"
            return Verdict("refused", reason)
        status, reason = cut or _told_by(code)
        memory = None if self.peak is None else round(self.peak, 1)
        return Verdict(status, reason, stdout, stderr, round(self.ended - self.begun, 3), memory)


@contextlib.contextmanager
def _process_descriptor(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _told_by(code: int) -> tuple[Status, str]:
    """Status and reason of a process that ended by itself, from its exit code."""
    if code == 0:
        return "ok", ""
    if code == MEMORY_STATUS:
        return "memory", "needed more memory than its limit"
    if code == -signal.SIGXCPU:
        return "timeout", "used more processor time than its limit"
    if code < 0:
        try:
            return "killed", f"by {signal.Signals(-code).name}"
        except ValueError:
            return "killed", f"by signal {-code}"
    return "error", f"exit status {code}"
