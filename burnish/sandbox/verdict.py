"""Limits of a program and its verdict, in the same terms on every layer."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import IO, Literal

from burnish.errors import BurnishError, InputError
from burnish.sandbox.program import MEMORY_STATUS

Status = Literal["ok", "error", "timeout", "memory", "killed", "refused"]

MIN_MEMORY = 64
START_SECONDS = 30.0
"""Time limit for the start of Python."""
FOLDER_CHECK_SECONDS = 0.1
"""Interval at which a program's folder is checked."""


class Unavailable(BurnishError):
    """A layer does not work on this machine; the message gives the reason in one line."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Resources that a program may use. Raises InputError if one is out of range."""

    seconds: float = 10.0
    """Wall-clock time from its first line on."""
    memory: int = 256
    """MB of address space, including the interpreter's."""
    output: int = 1 << 16
    """Bytes on each of standard output and standard error."""
    numpy: bool = False
    """Whether programs can import numpy, which is not in every layer."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 86_400:
            raise InputError(f"sandbox: seconds = {self.seconds:g} must be above 0 and at most 86400")
        if not MIN_MEMORY <= self.memory <= 1 << 20:
            raise InputError(f"sandbox: memory = {self.memory} MB must be between {MIN_MEMORY} and {1 << 20}")
        if self.output < 1:
            raise InputError(f"sandbox: output = {self.output} bytes must be at least 1")


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of running a program.

    Attributes:
        status: "ok" (exit status 0), "error" (an exception or another exit status), "timeout", "memory" (ended by
            a MemoryError), "killed" (by a signal, or for too much output or too many files), "refused" (not run).
        reason: why, in a few words; empty if the status is "ok".
        stdout, stderr: its output, up to the limit; bytes that are not UTF-8 are escaped.
        seconds: wall-clock time from its first line on.
        memory: largest resident set in MB; None if not run or not measurable.
        layer: the layer in which it ran.
    """

    status: Status
    reason: str
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    memory: float | None = None
    layer: str = ""


def last_line(errors: IO[bytes]) -> str:
    """Return the last line of a file of error output, or an empty text."""
    errors.seek(0)
    return (errors.read().decode("utf-8", "backslashreplace").strip().splitlines() or [""])[-1]


def status_from_exit_code(code: int) -> tuple[Status, str]:
    """Return the status and reason for the exit code of a process that broke no limit."""
    if code == 0:
        return "ok", ""
    if code == MEMORY_STATUS:
        return "memory", "needed more memory than its limit"
    if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
        return "timeout", "used more processor time than its limit"
    if code < 0:
        try:
            return "killed", f"by {signal.Signals(-code).name}"
        except ValueError:
            return "killed", f"by signal {-code}"
    return "error", f"exit status {code}"
