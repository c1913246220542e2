"""Errors of burnish, which the command line turns into exit statuses 1 and 2."""

from __future__ import annotations


class BurnishError(Exception):
    """A failure at work. The message has one or two lines and names the fix."""

    exit_status = 1


class InputError(BurnishError):
    """Invalid input: a recipe, option, file or plug-in. The message names the location, the value and the fix."""

    exit_status = 2


class ContractError(BurnishError):
    """A result that the contract of a plug-in rules out. It recurs in a resumed run until the plug-in is corrected."""


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line, with runs of white space replaced by single spaces."""
    return " ".join(str(error).split())
