"""Ctrl-C, held back while the weights and the lines on disk disagree."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from burnish.errors import BurnishError


class Interrupts:
    """Within the block, SIGINT raises KeyboardInterrupt as ever, but for the time between ``hold`` and ``release``.

    A step holds before the optimizer moves the weights, and the loop releases once the step's rows are written, so that a
    checkpoint can be saved whenever the KeyboardInterrupt comes. Outside the main thread, where no signal arrives, nothing
    happens.
    """

    def __init__(self) -> None:
        self._held = False
        self._pending = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._arrived)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        """Raises KeyboardInterrupt if one came meanwhile."""
        self._held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt


class Interrupted(BurnishError):
    """Somebody pressed Ctrl-C; the run folder is whole and says how to go on."""

    exit_status = 130
