"""What is done with a program where it runs, whatever the layer: it is executed, and then answers calls.

Only the standard library is imported here, and of that what every Python has: the layer ``wasm`` sends this file's text
to a Python inside WebAssembly, and the others import it in a bare Python.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import types
from typing import Any, NoReturn

MEMORY_STATUS = 77
FILE_BYTES = 8 << 20
"""Size of the largest file that a program can write, where the system has such a limit."""


def work(source: str, name: str, calls: list[dict[str, Any]] | None, answers: int | None) -> int:
    """Runs a program as ``__main__``, then the calls, whose answers go to a descriptor as lines of JSON.

    Returns:
        The exit status.
    """
    module = types.ModuleType("__main__")
    module.__file__ = name
    sys.modules["__main__"] = module
    sys.argv = [name]
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as end:
        if calls is None:
            return _status(end.code)
    except MemoryError:
        module.__dict__.clear()
        os.write(2, b"MemoryError: over the sandbox's limit\n")
        return MEMORY_STATUS
    except BaseException as error:
        _show(error, source, name)
        return 1
    for call in calls or []:
        _answer(module, call, answers)
    return 0


def _status(code: object) -> int:
    """What ``sys.exit`` makes of its argument."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def leave(status: int) -> NoReturn:
    """Ends the process as Python would, without taking Python itself to pieces: in a fork, whose every page is copied when
    it is touched, that took three times as long as all the rest."""
    atexit._run_exitfuncs()
    sys.modules["__main__"].__dict__.clear()
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # a program may have put anything there
            status = status or (120 if name == "stdout" else 0)
    os._exit(status)


def _show(error: BaseException, source: str, name: str) -> None:
    # Imported only here, since most of the time that a short program takes is spent on imports.
    import linecache
    import traceback

    # The program's lines are in no file.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    trace = error.__traceback__
    traceback.print_exception(type(error), error, trace.tb_next if trace else None)


def _answer(module: types.ModuleType, call: dict[str, Any], answers: int | None) -> None:
    assert answers is not None
    try:
        line = json.dumps({"value": getattr(module, call["function"])(*call["arguments"])})
    except BaseException as error:
        line = json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})
    left = line.encode() + b"\n"
    while left:
        left = left[os.write(answers, left) :]
