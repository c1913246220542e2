"""Ctrl-C and SIGTERM: delayed while the weights and the lines on disk disagree."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from burnish.errors import BurnishError, Signalled


class Terminated(Signalled):
    """SIGTERM, by which schedulers and ``kill`` ask a process to end."""


class Interrupts:
    """Context manager in which SIGINT raises KeyboardInterrupt, and SIGTERM its subclass Terminated.

    Neither is raised between ``hold`` and ``release``.

    A step calls ``hold`` before the optimizer moves the weights, and the loop calls ``release`` once the step's rows
    are written, so a checkpoint can be saved at any KeyboardInterrupt. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self._held = False
        self._pending: type[KeyboardInterrupt] | None = None
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: the earlier handler is not of Python, and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def hold(self) -> None:
        """Delay both signals until ``release``."""
        self._held = True

    def release(self) -> None:
        """Stop delaying; raise KeyboardInterrupt if a signal arrived since ``hold``."""
        self._held = False
        if pending := self._pending:
            self._pending = None
            raise pending

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Delay both signals within the context, if they are not delayed already."""
        if self._held:
            yield
            return
        self.hold()
        try:
            yield
        finally:
            self.release()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        kind = Terminated if number == signal.SIGTERM else Signalled
        if os.getpid() != self._process:  # a forked child ends as it would without this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._held:
            self._pending = kind
        else:
            raise kind


class Interrupted(BurnishError):
    """The run was stopped by Ctrl-C or SIGTERM; its folder is intact, and the message names the command to resume."""

    exit_status = 128 + signal.SIGINT

    def __init__(self, message: str, signal_received: KeyboardInterrupt | None = None) -> None:
        super().__init__(message)
        if isinstance(signal_received, Terminated):
            self.exit_status = 128 + signal.SIGTERM
