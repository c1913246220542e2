"""What a program may use, and what is said of it afterwards: the same words on every layer."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from burnish.errors import BurnishError, InputError
from burnish.sandbox.program import MEMORY_STATUS

Status = Literal["ok", "error", "timeout", "memory", "killed", "refused"]

LEAST_MEMORY = 64
START_SECONDS = 30.0
"""How long Python may take to start."""
LOOK_EVERY = 0.1
"""Seconds between two looks into a program's folder."""


class Unavailable(BurnishError):
    """A layer does not stand here, for the reason that the message gives in one line."""


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


def told_by(code: int) -> tuple[Status, str]:
    """Status and reason of a process that ended by itself, from its exit code."""
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
