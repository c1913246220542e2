"""Calls of reward functions: many ``async`` ones at once, a time limit, and a place for what they print."""

from __future__ import annotations

import contextvars
import inspect
import os
import stat
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from burnish.errors import BurnishError, InputError, one_line

if TYPE_CHECKING:
    import asyncio

PRINTED = "rewards.log"
"""File of a run folder with what reward functions print."""
PRINTED_BYTES = 10 << 20
"""Largest size of that file."""
_FULL = "\n... rewards.log is full: what rewards print from here on is dropped\n"
_LOG: contextvars.ContextVar[Path | None] = contextvars.ContextVar("printed", default=None)
_PACKAGE = str(Path(__file__).parents[1])


class OverTime(Exception):
    """A reward function took longer than its time limit."""


def outcomes(calls: Sequence[Callable[[], Any]], seconds: float | None, *, stop_early: bool) -> list[Any]:
    """Return what each call returns, or the exception that it raised; awaitables are awaited together.

    Args:
        seconds: the time limit of one call.
        stop_early: end with the first exception, before later calls are made.

    BurnishError, an error that says already what to do, is raised.
    """
    results: list[Any] = []
    with _printing_aside():
        for call in calls:
            results.append(_outcome(call, seconds))
            if stop_early and isinstance(results[-1], Exception):
                break
        waiting = [index for index, value in enumerate(results) if isinstance(value, Awaitable)]
        if waiting:
            done = _await_all([results[index] for index in waiting], seconds)
            for index, value in zip(waiting, done, strict=True):
                results[index] = value
    for result in results:
        if isinstance(result, BurnishError):
            raise result
    return results


def explain(error: Exception, function: object) -> str:
    """Return an exception of a reward in one line, with the file and the line of the function that raised it."""
    if isinstance(error, OverTime):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == _source_file(function)]
    place = (own or [frame for frame in frames if not frame.filename.startswith(_PACKAGE)])[-1:]
    where = f" ({place[0].filename}, line {place[0].lineno})" if place else ""
    return f"raised {type(error).__name__}: {one_line(error)}{where}"


def _source_file(function: Any) -> str | None:
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code.co_filename if code else None


@contextmanager
def printing_to(folder: Path) -> Iterator[None]:
    """Let reward functions print to ``rewards.log`` in a folder, instead of standard error."""
    token = _LOG.set(folder / PRINTED)
    try:
        yield
    finally:
        _LOG.reset(token)


@contextmanager
def _printing_aside() -> Iterator[None]:
    """Keep standard output for the results of a verb, and standard error for its panel.

    Programs that a reward starts inherit descriptors, not ``sys.stdout``, so descriptor 1 is redirected too.
    """
    path = _LOG.get()
    if path is None:
        with redirect_stdout(sys.stderr), _descriptor_aside(2):
            yield
        return
    try:
        with (
            open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1, opener=_own_file) as file,
            redirect_stdout(file), redirect_stderr(file), _descriptor_aside(file.fileno()),
        ):  # fmt: skip
            yield
            _bound(file)
    finally:
        with suppress(OSError):
            if path.lstat().st_size == 0:
                path.unlink()


def _bound(file: TextIO) -> None:
    """Cut a log that has grown beyond its largest size, and say so at its end."""
    file.flush()
    if os.fstat(file.fileno()).st_size > PRINTED_BYTES:
        file.truncate(PRINTED_BYTES - len(_FULL))
        file.write(_FULL)


def _own_file(path: str, flags: int) -> int:
    """Open a regular file of the run folder, which may have been copied from elsewhere, for appending.

    Raises InputError if it is a link, which would lead out of the folder, or another kind of file.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise InputError(f"{path} is not a regular file, so what rewards print cannot go there: remove it")
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def _descriptor_aside(descriptor: int) -> Iterator[None]:
    try:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        kept = os.dup(1)
    except (OSError, ValueError):  # closed
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(descriptor, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _outcome(call: Callable[[], Any], seconds: float | None) -> Any:
    try:
        return call() if seconds is None else _limited(call, seconds)
    except Exception as error:
        return error


def _limited(call: Callable[[], Any], seconds: float) -> Any:
    """Return what a call returns in a thread of its own; after the time limit, stop the thread and raise OverTime."""
    result: list[Any] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result.append((context.run(call), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=work, name="reward", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        import ctypes

        # Ends Python code; a call into C goes on, in a daemon thread that does not keep the process alive.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise _too_slow(seconds)
    value, error = result[0]
    if error is not None:
        raise error
    return value


def _too_slow(seconds: float) -> OverTime:
    return OverTime(f"took longer than its time_limit of {seconds:g} s")


def _await_all(awaitables: Sequence[Awaitable[Any]], seconds: float | None) -> list[Any]:
    """Return each awaitable's result or exception, awaited together."""
    import asyncio  # slow

    async def one(awaitable: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(awaitable, seconds)
        except TimeoutError as error:
            if seconds is None or error.args:  # the function's own
                return error
            return _too_slow(seconds)
        except Exception as error:
            return error

    async def every() -> list[Any]:
        return list(await asyncio.gather(*map(one, awaitables)))

    future = asyncio.run_coroutine_threadsafe(every(), _loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C
        future.cancel()
        raise


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """Return the process's loop for rewards, in its own thread: clients that functions keep are tied to one loop."""
    import asyncio

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop
