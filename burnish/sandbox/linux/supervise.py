"""A program that is a process: started, read from, ended where it breaks a limit, and what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from burnish.sandbox.folder import overfull, own_folder
from burnish.sandbox.linux.server import END
from burnish.sandbox.names import TITLES
from burnish.sandbox.verdict import LOOK_EVERY, START_SECONDS, Limits, Status, Verdict, told_by

_TICK = 0.02
_END_SECONDS = 120.0


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


def attend(
    start: Callable[[Sequence[int]], subprocess.Popen[bytes] | None], programs: str | None, layer: str,
    work: Mapping[str, Any], limits: Limits, answers: bool,
) -> tuple[Verdict, bytes]:  # fmt: skip
    """Starts a program, waits for its end, and returns the verdict, and what came over the descriptor for answers.

    Args:
        start: starts the program that the descriptors of ``server.watch`` are for, and returns what is to be waited for.
        programs: the folder for the programs' own folders; None for the usual place.
        layer: the walls that stand around it.
        work, limits, answers: as of ``layers.Walls.run``.
    """
    with own_folder(programs) as folder, contextlib.ExitStack() as kept:
        names = ("stdout", "stderr", "report", "answers") if answers else ("stdout", "stderr", "report")
        control, theirs = map(kept.enter_context, socket.socketpair())
        pipes = {}
        for name in names:
            read, write = os.pipe()
            pipes[name] = (kept.enter_context(open(read, "rb", 0)), kept.enter_context(open(write, "wb", 0)))
        job = {**work, "folder": folder, "seconds": limits.seconds, "memory": limits.memory << 20}
        with job_file(job) as described:
            passed = [theirs.fileno(), described, *(end.fileno() for _, end in pipes.values())]
            process = start(passed)
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
        return watch.verdict(cut, TITLES[layer]), bytes(watch.heard.get("answers", b""))


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
            slow = self.waited > START_SECONDS
            return ("refused", f"Python did not start within {START_SECONDS:g} s") if slow else None
        if self.ended - self.begun > self.limits.seconds:
            return "timeout", f"ran longer than {self.limits.seconds:g} s"
        if self.ended - self.looked > LOOK_EVERY:
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
        status, reason = cut or told_by(code)
        # In bytes on macOS, in KB elsewhere.
        memory = None if peak is None else round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
        return Verdict(status, reason, stdout, stderr, round(self.ended - self.begun, 3), memory, layer)
