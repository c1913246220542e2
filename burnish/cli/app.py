"""The Typer application: its verbs, its exit statuses and its error messages.

Results go to standard output, progress and errors to standard error. Exit status: 0 success, 1 a failure, 2 bad input,
130 stopped by Ctrl-C, 143 by SIGTERM. Each verb imports what it needs inside its function, so that help stays quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from copy import copy
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from typer.models import CommandInfo

from burnish import __version__
from burnish.cli import (
    catalogue,
    chat,
    checking,
    exporting,
    filtering,
    generation,
    hardening,
    machine,
    measuring,
    planning,
    redteaming,
    reporting,
    reviewing,
    training,
)
from burnish.cli.options import escape
from burnish.errors import BurnishError
from burnish.system.lazy import postpone_import

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

app = typer.Typer(
    help="Improve a language model by reinforcement learning, and prove that it improved.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (
    training, measuring, checking, generation, chat, filtering, redteaming, hardening, exporting, reporting, reviewing,
    catalogue, planning, machine,
):  # fmt: skip
    app.registered_commands += group.verbs.registered_commands


def main() -> None:
    """Run a verb; report an error in one or two lines and exit with its status."""
    for slow in ("torch", "numpy"):  # verbs that compute nothing answer at once without them
        postpone_import(slow)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that cannot encode 我 prints \\u6211 instead of failing.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            only_verb(sys.argv[1:2])(prog_name="burnish")
        finally:
            # Flush here, where a closed pipe can still be handled, rather than at interpreter exit.
            sys.stdout.flush()
    except BurnishError as error:
        exit_with(error)
    except SystemExit as end:
        # Typer exits this way when a second Ctrl-C arrives before the message of the first one is printed.
        if interrupt := first_interrupt(end):
            exit_with(interrupt)
        raise
    except OSError as error:
        if error.filename is not None:
            print(f"burnish: {escape(str(error.filename))}: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        # Writing the output failed; every other OSError was turned into a BurnishError where it happened.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader closed the pipe, as `head` does; this is not an error.
            sys.exit(0)
        print(f"burnish: cannot write the result: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("burnish: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def only_verb(names: Sequence[str]) -> typer.Typer:
    """Return the application with the verb of this name only, since Typer builds all that it has; with all for help."""
    commands = [command for command in app.registered_commands if _name(command) in names]
    if not commands:
        return app
    alone = copy(app)
    alone.registered_commands = commands
    return alone


def _name(command: CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))


def exit_with(error: BurnishError) -> NoReturn:
    """Print an error in at most two lines and exit with its status."""
    # A second Ctrl-C must not cut the message off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\n".join(f"burnish: {escape(line)}" for line in str(error).split("\n")[:2]), file=sys.stderr)
    sys.exit(error.exit_status)


def first_interrupt(end: SystemExit) -> BurnishError | None:
    """Return the error of a first Ctrl-C that a second one replaced, or None."""
    error: BaseException | None = end if end.code == INTERRUPTED else None
    while error is not None:
        # Of the errors chained behind the exit, some already handled, only this one was still to be reported.
        if isinstance(error, BurnishError) and error.exit_status == INTERRUPTED:
            return error
        error = error.__cause__ or error.__context__
    return None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"burnish {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
