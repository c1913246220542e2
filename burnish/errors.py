"""Errors of burnish, which the command line turns into exit statuses 1 and 2."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class BurnishError(Exception):
    """A failure at work. The message has one or two lines and names the fix."""

    exit_status = 1


class InputError(BurnishError):
    """Invalid input: a recipe, option, file or plug-in. The message names the location, the value and the fix."""

    exit_status = 2


class ContractError(BurnishError):
    """A result that the contract of a plug-in rules out. It recurs in a resumed run until the plug-in is corrected."""


class StateLost(BurnishError):
    """Weights or moments went with the process that held them, and the last checkpoint has them."""


class Signalled(KeyboardInterrupt):
    """Ctrl-C, as burnish's own handler raises it: nothing else does, so it is known from a plug-in's own exception."""


MOST_TEXT = 2000
"""Characters of another's error message that are shown."""


def is_interrupt(error: BaseException) -> bool:
    """Return whether an exception that went through a plug-in's code is Ctrl-C or SIGTERM, and not of the plug-in."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    if isinstance(error, Signalled) or isinstance(error.__context__, Signalled):  # a plug-in may raise it anew
        return True
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def text_of(read: Callable[[], object]) -> str | None:
    """Return the text that a plug-in's object gives of itself; None if it raises, or is not text."""
    try:
        text = read()
    except BaseException as error:
        if is_interrupt(error):
            raise
        return None
    return str.__str__(text) if isinstance(text, str) else None


def library_message(error: BaseException) -> str:
    """Return the message of a library's error in one line, after its class where the message alone would not say much."""
    kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)[:300]}"


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, with runs of white space replaced by single spaces.

    A message that is too long is cut; of one that cannot be read, that is said.
    """
    text = text_of(lambda: str(error))
    if text is None:
        return "(its message cannot be read)"
    line = " ".join(text[: 4 * MOST_TEXT].split())
    return line if len(line) <= MOST_TEXT else line[: MOST_TEXT - 3] + "..."
