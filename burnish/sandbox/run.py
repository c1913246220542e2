"""One Python program, run where it can reach nothing: starts it, watches it, ends it, and says what became of it.

A process of its own behind walls (see ``layers`` and ``walls``), with an empty folder, an almost empty environment, a
session of its own and no open file but its output. It cannot start processes or threads, so killing it kills all of it.
Every run tries its walls before the program's first line and refuses to run where they do not hold.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from burnish.errors import InputError
from burnish.sandbox import layers
from burnish.sandbox.child import MEMORY_STATUS
from burnish.sandbox.folder import overfull, own_folder
from burnish.sandbox.layers import STRONGEST, TITLES, Unavailable
from burnish.sandbox.server import END

Status = Literal["ok", "error", "timeout", "memory", "killed", "refused"]

LEAST_MEMORY = 64
_TICK = 0.02
_LOOK_EVERY = 0.1
_END_SECONDS = 120.0


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
        memory: MB of the largest resident set; None where it was not run.
        layer: the walls that stood around it.
    """

    status: Status
    reason: str
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    memory: float | None = None
    layer: str = ""


def run(source: str, *, limits: Limits = DEFAULT, name: str = "program.py", layer: str = STRONGEST) -> Verdict:
    """Runs a Python program, of the standard library only, and waits for its end. Threads may run programs at once.

    Args:
        source: the program.
        limits: what it may use.
        name: what its tracebacks call it.
        layer: "namespaces", "landlock", "strongest" of these, or "none": no walls at all.

    Raises:
        InputError: there is no such layer.
    """
    return attend({"source": source, "name": name}, limits=limits, layer=layer)[0]


def attend(
    work: Mapping[str, Any], *, limits: Limits, answers: bool = False, layer: str = STRONGEST
) -> tuple[Verdict, bytes]:
    """Runs a job of ``child`` and returns the verdict, and what came over the descriptor for answers if there is one."""
    try:
        walls = layers.standing(layer)
        return _attend(walls, work, limits, answers)
    except Unavailable as error:
        return Verdict("refused", str(error)), b""


def _attend(walls: layers.Walls, work: Mapping[str, Any], limits: Limits, answers: bool) -> tuple[Verdict, bytes]:
    with own_folder(walls.programs) as folder, contextlib.ExitStack() as kept:
        names = ("stdout", "stderr", "report", "answers") if answers else ("stdout", "stderr", "report")
        control, theirs = map(kept.enter_context, socket.socketpair())
        pipes = {}
        for name in names:
            read, write = os.pipe()
            pipes[name] = (kept.enter_context(open(read, "rb", 0)), kept.enter_context(open(write, "wb", 0)))
        job = {**work, "folder": folder, "seconds": limits.seconds, "memory": limits.memory << 20}
        with layers.job_file(job) as described:
            passed = [theirs.fileno(), described, *(end.fileno() for _, end in pipes.values())]
            process = walls.start(passed)
        if process is not None:
            kept.callback(process.wait)
        theirs.close()
        for _, end in pipes.values():
            end.close()
        watch = _Watch(control, {name: end.fileno() for name, (end, _) in pipes.items()}, limits, folder)
        try:
            cut = watch.until_end()
        finally:
            watch.end()
        return watch.verdict(cut, TITLES[walls.layer]), bytes(watch.heard.get("answers", b""))


class _Watch:
    """Reads what a program writes until it ends or breaks a limit."""

    def __init__(self, control: socket.socket, streams: Mapping[str, int], limits: Limits, folder: str) -> None:
        self.control, self.limits, self.folder = control, limits, folder
        self.streams = dict(streams)
        self.heard = {name: bytearray() for name in streams}
        self.begun: float | None = None
        self.ended = self.looked = time.monotonic()
        self.waited = 0.0
        self.said: bytes | None = None

    def until_end(self) -> tuple[Status, str] | None:
        """None where the program ended by itself, else the limit that it broke."""
        end = self.control.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(end, selectors.EVENT_READ)
            for name, descriptor in self.streams.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            while True:
                ready = selector.select(_TICK)
                before, self.ended = self.ended, time.monotonic()
                # Time in which this process itself was stopped, and the starting one with it, is nobody's delay.
                self.waited += min(self.ended - before, 5 * _TICK)
                over = any(key.fd == end for key, _ in ready)
                for key, _ in ready:
                    if key.fd != end and not self._hear(key.data):
                        selector.unregister(key.fd)
                if self.begun is None and self.heard["report"].startswith(b"ready"):
                    self.begun = self.ended
                if over:
                    return self._rest()
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

    def end(self) -> None:
        """Ends the program if it has not ended, and hears from its watcher how it did."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
        self.control.settimeout(_END_SECONDS)
        try:
            self.said = self.control.recv(END.size)
        except OSError:
            self.said = b""

    def _broken(self) -> tuple[Status, str] | None:
        if self.begun is None:
            slow = self.waited > layers.START_SECONDS
            return ("refused", f"Python did not start within {layers.START_SECONDS:g} s") if slow else None
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

    def verdict(self, cut: tuple[Status, str] | None, layer: str) -> Verdict:
        stdout, stderr = (
            bytes(self.heard[name][: self.limits.output]).decode("utf-8", "backslashreplace")
            for name in ("stdout", "stderr")
        )
        whole = self.said is not None and len(self.said) == END.size
        ended, peak = END.unpack(self.said or b"") if whole else (signal.SIGKILL, None)
        code = os.waitstatus_to_exitcode(ended)
        if self.begun is None:
            said = bytes(self.heard["report"]).decode("utf-8", "backslashreplace").removeprefix("refused: ")
            last = (stderr.strip().splitlines() or [""])[-1]
            reason = cut[1] if cut else said or last or f"Python ended with status {code} before the program began"
            return Verdict("refused", reason)
        status, reason = cut or _told_by(code)
        # In bytes on macOS, in KB elsewhere.
        memory = None if peak is None else round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
        return Verdict(status, reason, stdout, stderr, round(self.ended - self.begun, 3), memory, layer)


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
