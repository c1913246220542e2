"""Supervision of a program from outside: reads its output, ends it at a limit, and returns a verdict."""

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

from burnish.sandbox.folder import exceeded_limit, temporary_folder
from burnish.sandbox.linux.server import EXIT_RECORD
from burnish.sandbox.names import TITLES
from burnish.sandbox.verdict import (
    FOLDER_CHECK_SECONDS,
    START_SECONDS,
    Limits,
    Status,
    Verdict,
    status_from_exit_code,
)  # fmt: skip

_TICK = 0.02
_END_SECONDS = 120.0


@contextlib.contextmanager
def job_file(job: object) -> Iterator[int]:
    """Write a job as JSON to a file in memory; yield its descriptor, positioned at the beginning."""
    with contextlib.ExitStack() as cleanup:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("job")
            cleanup.callback(os.close, descriptor)
        else:
            descriptor = cleanup.enter_context(tempfile.TemporaryFile(buffering=0)).fileno()
        remaining = memoryview(json.dumps(job).encode())
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor


def run_supervised(
    start: Callable[[Sequence[int]], subprocess.Popen[bytes] | None], programs: str | None, layer: str,
    request: Mapping[str, Any], limits: Limits, answers: bool,
) -> tuple[Verdict, bytes]:  # fmt: skip
    """Start a program and wait for its end, as ``layers.Runner.run`` does.

    Args:
        start: starts a program with the descriptors that ``server.fork_program`` takes; returns a process to wait for,
            or None.
        programs: the folder in which to create the program's folder; None for the system's temporary directory.
    """
    with temporary_folder(programs) as folder, contextlib.ExitStack() as cleanup:
        names = ("stdout", "stderr", "report", "answers") if answers else ("stdout", "stderr", "report")
        control, theirs = map(cleanup.enter_context, socket.socketpair())
        pipes = {}
        for name in names:
            read, write = os.pipe()
            pipes[name] = (cleanup.enter_context(open(read, "rb", 0)), cleanup.enter_context(open(write, "wb", 0)))
        job = {**request, "folder": folder, "seconds": limits.seconds, "memory": limits.memory << 20}
        with job_file(job) as job_descriptor:
            passed = [theirs.fileno(), job_descriptor, *(end.fileno() for _, end in pipes.values())]
            process = start(passed)
        if process is not None:
            cleanup.callback(process.wait)
        theirs.close()
        for _, end in pipes.values():
            end.close()
        monitor = _Monitor(control, {name: end.fileno() for name, (end, _) in pipes.items()}, limits, folder)
        try:
            cut = monitor.wait()
        finally:
            monitor.end()
        return monitor.verdict(cut, TITLES[layer]), bytes(monitor.received.get("answers", b""))


class _Monitor:
    """Reads a program's output until it ends or breaks a limit."""

    def __init__(self, control: socket.socket, streams: Mapping[str, int], limits: Limits, folder: str) -> None:
        self.control, self.limits, self.folder = control, limits, folder
        self.streams = dict(streams)
        self.received = {name: bytearray() for name in streams}
        self.started: float | None = None
        self.ended = self.checked = time.monotonic()
        self.waited = 0.0
        self.exit_record: bytes | None = None

    def wait(self) -> tuple[Status, str] | None:
        """Wait until the program ends or breaks a limit. Return the status and reason for the limit, or None."""
        end = self.control.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(end, selectors.EVENT_READ)
            for name, descriptor in self.streams.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            while True:
                ready = selector.select(_TICK)
                before, self.ended = self.ended, time.monotonic()
                # Leaves out time during which this process was suspended: the server may have been suspended too.
                self.waited += min(self.ended - before, 5 * _TICK)
                ended = any(key.fd == end for key, _ in ready)
                for key, _ in ready:
                    if key.fd != end and not self._read(key.data):
                        selector.unregister(key.fd)
                if self.started is None and self.received["report"].startswith(b"ready"):
                    self.started = self.ended
                if ended:
                    return self._drain()
                cut = self._broken_limit()
                if cut:
                    return cut

    def _read(self, name: str) -> bool:
        """Read the available bytes of a stream. Returns False at its end."""
        try:
            chunk = os.read(self.streams[name], 1 << 16)
        except BlockingIOError:
            return True
        self.received[name] += chunk
        return bool(chunk)

    def _drain(self) -> tuple[Status, str] | None:
        """Read the remaining output of a process that has ended."""
        for name in self.streams:
            before = -1
            while len(self.received[name]) > before:
                before = len(self.received[name])
                self._read(name)
        if self.started is None and self.received["report"].startswith(b"ready"):
            self.started = self.ended
        return self._too_much_output()

    def end(self) -> None:
        """End the program if it is still running, and receive its supervisor's exit record."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
        self.control.settimeout(_END_SECONDS)
        try:
            self.exit_record = self.control.recv(EXIT_RECORD.size)
        except OSError:
            self.exit_record = b""

    def _broken_limit(self) -> tuple[Status, str] | None:
        if self.started is None:
            slow = self.waited > START_SECONDS
            return ("refused", f"Python did not start within {START_SECONDS:g} s") if slow else None
        if self.ended - self.started > self.limits.seconds:
            return "timeout", f"ran longer than {self.limits.seconds:g} s"
        if self.ended - self.checked > FOLDER_CHECK_SECONDS:
            self.checked = self.ended
            reason = exceeded_limit(self.folder)
            if reason:
                return "killed", reason
        return self._too_much_output()

    def _too_much_output(self) -> tuple[Status, str] | None:
        for name, received in self.received.items():
            if len(received) > self.limits.output:
                return "killed", f"wrote more than {self.limits.output} bytes on {name}"
        return None

    def verdict(self, cut: tuple[Status, str] | None, layer: str) -> Verdict:
        stdout, stderr = (
            bytes(self.received[name][: self.limits.output]).decode("utf-8", "backslashreplace")
            for name in ("stdout", "stderr")
        )
        complete = self.exit_record is not None and len(self.exit_record) == EXIT_RECORD.size
        wait_status, peak = EXIT_RECORD.unpack(self.exit_record or b"") if complete else (signal.SIGKILL, None)
        code = os.waitstatus_to_exitcode(wait_status)
        if self.started is None:
            refusal = bytes(self.received["report"]).decode("utf-8", "backslashreplace").removeprefix("refused: ")
            last = (stderr.strip().splitlines() or [""])[-1]
            reason = cut[1] if cut else refusal or last or f"Python ended with status {code} before the program began"
            return Verdict("refused", reason)
        status, reason = cut or status_from_exit_code(code)
        # ru_maxrss is in bytes on macOS, in KB elsewhere.
        memory = None if peak is None else round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)
        return Verdict(status, reason, stdout, stderr, round(self.ended - self.started, 3), memory, layer)
