"""The two ways burnish fails on purpose; the command line turns them into exit statuses 2 and 1."""

from __future__ import annotations


class BurnishError(Exception):
    """Something failed while working. The message is one or two lines and names the fix."""

    exit_status = 1


class InputError(BurnishError):
    """The input (recipe, option, file, plug-in) cannot work. The message names the place, the value and the fix."""

    exit_status = 2


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, with runs of white space replaced by single spaces."""
    return " ".join(str(error).split())
