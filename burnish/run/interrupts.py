"""Delays Ctrl-C while the weights and the lines on disk disagree."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from burnish.errors import BurnishError


class Interrupts:
    """Context manager in which SIGINT raises KeyboardInterrupt, except between ``hold`` and ``release``.

    A step calls ``hold`` before the optimizer moves the weights, and the loop calls ``release`` once the step's rows
    are written, so a checkpoint can be saved at any KeyboardInterrupt. Outside the main thread it does nothing.
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

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)

    def hold(self) -> None:
        """Delay SIGINT until ``release``."""
        self._held = True

    def release(self) -> None:
        """Stop delaying; raise KeyboardInterrupt if a SIGINT arrived since ``hold``."""
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
    """The run was stopped by Ctrl-C; its folder is intact, and the message names the command to resume."""

    exit_status = 130
