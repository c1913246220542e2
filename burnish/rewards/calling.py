"""Calls of reward functions: many ``async`` ones at once, a time limit, a place for what they print, the state after."""

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
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from burnish.errors import BurnishError, ContractError, InputError, is_interrupt, one_line, text_of
from burnish.rewards.process_state import Settings, own_randomness

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

    SystemExit and other exceptions that end a program are a reward's exceptions too; only Ctrl-C and SIGTERM are not.
    What a call sets for the whole process is put back: see ``burnish.rewards.process_state``.

    Args:
        seconds: the time limit of one call.
        stop_early: end with the first exception, before later calls are made.

    BurnishError, an error that says already what to do, is raised.
    """
    results: list[Any] = []
    with _printing_aside(), own_randomness(), _not_ending():
        settings = Settings()
        try:
            for call in calls:
                results.append(_outcome(call, seconds, settings))
                if stop_early and failed(results[-1]):
                    break
            waiting = [index for index, value in enumerate(results) if issubclass(type(value), Awaitable)]
            done = _await_all([results[index] for index in waiting], seconds) if waiting else []
        finally:
            settings.restore_all()
        for index, value in zip(waiting, done, strict=True):
            results[index] = value
    for result in results:
        if failed(result) and isinstance(result, BurnishError):
            raise _readable(result)
    return results


@contextmanager
def _not_ending() -> Iterator[None]:
    """Make ``os._exit`` an exception of the reward that calls it: it would end the run with whatever status it likes.

    Processes that a reward has forked leave by it as ever.
    """
    real, own = os._exit, os.getpid()

    def leave(status: int = 0) -> NoReturn:
        if os.getpid() != own:
            real(status)
        raise RuntimeError(f"os._exit({status!r}) would end the run without saving it: raise an exception instead")

    os._exit = leave
    try:
        yield
    finally:
        os._exit = real


def failed(outcome: object) -> bool:
    """Return whether an outcome is an exception. An object's own ``__class__`` is not asked: it may raise."""
    return issubclass(type(outcome), BaseException)


def explain(error: BaseException, function: object) -> str:
    """Return an exception of a reward in one line, with the file and the line of the function that raised it."""
    if isinstance(error, OverTime):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == _source_file(function)]
    place = (own or [frame for frame in frames if not frame.filename.startswith(_PACKAGE)])[-1:]
    where = f" ({place[0].filename}, line {place[0].lineno})" if place else ""
    text = one_line(error)
    return f"raised {type(error).__name__}{': ' if text else ''}{text}{where}"


def _readable(error: BurnishError) -> BurnishError:
    """Return an error of burnish that a reward raised, or one with its text if it is of a class of the reward's own."""
    if type(error).__module__.startswith("burnish.") and text_of(lambda: str(error)) is not None:
        return error
    kind = next(kind for kind in (InputError, ContractError, BurnishError) if isinstance(error, kind))
    return kind(one_line(error))


def _source_file(function: Any) -> str | None:
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return code.co_filename if code else None


@contextmanager
def printing_to(folder: Path, name: str = PRINTED) -> Iterator[None]:
    """Let reward functions print to ``rewards.log`` in a folder, instead of standard error."""
    token = _LOG.set(folder / name)
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
        _reopen_standard_error()
        return
    try:
        with (
            open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1, opener=_own_file) as file,
            redirect_stdout(file), redirect_stderr(file), _descriptor_aside(file.fileno()),
        ):  # fmt: skip
            yield
            if not file.closed:
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
    except (OSError, ValueError):  # closed
        yield
        return
    kept = {number: copy for number in (1, 2) if (copy := _duplicate(number)) is not None}
    try:
        with suppress(OSError):
            if 1 in kept:
                os.dup2(descriptor, 1)
        yield
    finally:
        # 2 as well: where a function closed it, the next file that is opened would get what errors print.
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


def _duplicate(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # closed
        return None


def _reopen_standard_error() -> None:
    """Open standard error again if a function closed it, also by closing standard output, which was directed there."""
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__ and sys.__stderr__.closed:
        stream = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115 - stays open
        sys.stderr = sys.__stderr__ = stream  # type: ignore[misc]


def _outcome(call: Callable[[], Any], seconds: float | None, settings: Settings) -> Any:
    try:
        return call() if seconds is None else _limited(call, seconds)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return error
    finally:
        settings.restore()


def _limited(call: Callable[[], Any], seconds: float) -> Any:
    """Return what a call returns in a thread of its own, or its exception.

    After the time limit, the thread is stopped, and OverTime is raised.
    """
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
    return value if error is None else error


def _too_slow(seconds: float) -> OverTime:
    return OverTime(f"took longer than its time_limit of {seconds:g} s")


def _await_all(awaitables: Sequence[Awaitable[Any]], seconds: float | None) -> list[Any]:
    """Return each awaitable's result or exception, awaited together."""
    import asyncio  # slow
    from concurrent.futures import CancelledError

    async def caught(awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end its loop with them
            return error

    async def one(awaitable: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(caught(awaitable), seconds)
        except TimeoutError as error:
            if seconds is None or error.args:  # the function's own
                return error
            return _too_slow(seconds)
        except BaseException as error:
            return error

    async def every() -> list[Any]:
        return list(await asyncio.gather(*map(one, awaitables)))

    future = asyncio.run_coroutine_threadsafe(every(), _loop())
    try:
        return future.result()
    except CancelledError as error:  # by a function that cancels all tasks of the loop
        return [error] * len(awaitables)
    except BaseException:  # Ctrl-C
        future.cancel()
        raise


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """Return the process's loop for rewards, in its own thread: clients that functions keep are tied to one loop."""
    import asyncio

    loop = asyncio.new_event_loop()

    def serve() -> None:
        while not loop.is_closed():  # a function may stop the loop, or its own task may end it
            with suppress(BaseException):
                loop.run_forever()

    threading.Thread(target=serve, name="async rewards", daemon=True).start()
    return loop
