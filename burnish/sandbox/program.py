"""Execution of a program and of calls to its functions, inside its process, on every layer.

This module imports only those parts of the standard library that every Python has: the layer ``wasm`` sends its text to
a Python inside WebAssembly, and the other layers import it in a Python without site-packages.
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
"""Largest size of a file that a program can write, on systems with such a limit."""


def execute(
    source: str, name: str, calls: list[dict[str, Any]] | None, answers: int | None, stdin: str | None = None
) -> int:
    """Run a program as ``__main__``, or import it and run the calls; return the exit status.

    Each call writes its answer as one line of JSON to the descriptor ``answers``. ``stdin`` replaces standard input,
    where the system can do so.
    """
    module = types.ModuleType("__main__" if calls is None else "solution")
    module.__file__ = name
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    if stdin is not None:
        _set_stdin(stdin)
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
        _print_traceback(error, source, name)
        return 1
    for call in calls or []:
        _answer_call(module, call, answers)
    return 0


def _set_stdin(text: str) -> None:
    """Make a text the program's standard input, by its descriptor too."""
    with open("stdin", "wb") as file:
        file.write(text.encode())
    descriptor = os.open("stdin", os.O_RDONLY)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    os.unlink("stdin")
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the program's, until its end


def _status(code: object) -> int:
    """Return the exit status that ``sys.exit`` derives from its argument."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def exit_process(status: int) -> NoReturn:
    """End the process as Python would, but without finalising the interpreter.

    In a forked process, finalisation copies every page that it touches. It took three times as long as everything else.
    """
    atexit._run_exitfuncs()
    sys.modules["__main__"].__dict__.clear()
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # a program may have replaced the stream
            status = status or (120 if name == "stdout" else 0)
    os._exit(status)


def _print_traceback(error: BaseException, source: str, name: str) -> None:
    # Imported only when needed: imports take most of a short program's time.
    import linecache
    import traceback

    # The program has no file from which to read its lines.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    trace = error.__traceback__
    traceback.print_exception(type(error), error, trace.tb_next if trace else None)


def plain(value: Any) -> Any:
    """Return a value with lists in place of tuples, of numpy's arrays and, sorted by their text, of sets."""
    value = _without_numpy(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {_without_numpy(key): plain(item) for key, item in value.items()}
    return value


def _without_numpy(value: Any) -> Any:
    return value.tolist() if type(value).__module__ == "numpy" else value


def _answer_call(module: types.ModuleType, call: dict[str, Any], answers: int | None) -> None:
    assert answers is not None
    try:
        if "expression" in call:
            value = eval(call["expression"], module.__dict__)
        else:
            # LeetCode's form: the method of a class.
            owner = module if hasattr(module, call["function"]) else getattr(module, "Solution", object)()
            value = getattr(owner, call["function"])(*call["arguments"])
        line = json.dumps({"value": plain(value)})
    except BaseException as error:
        line = json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})
    remaining = line.encode() + b"\n"
    while remaining:
        remaining = remaining[os.write(answers, remaining) :]
