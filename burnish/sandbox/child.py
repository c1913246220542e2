"""What runs inside: a bare Python that forks a process a program, which puts its walls up, tries them, and runs it.

``burnish.sandbox.layers`` starts it as a file, with one argument of JSON. Everything that is heard of a program after
its first line may be the program's own invention; see ``burnish.sandbox.answers`` for what that leaves to be trusted.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from burnish.sandbox.server import Given

MEMORY_STATUS = 77
USUAL = (
    "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "linecache", "math", "operator", "random", "re", "statistics", "string", "time", "traceback", "typing",
)  # fmt: skip
"""Imported once for all programs, where a process serves many."""


def main() -> None:
    asked = json.loads(sys.argv[1])
    sys.path.append(asked["package"])
    from burnish.sandbox import server, walls

    sys.path.remove(asked["package"])
    if asked["layer"] == server.NONE:
        given = server.watch(asked["descriptors"])
    else:
        for name in USUAL:
            __import__(name)
        given = server.serve(socket.socket(fileno=asked["channel"]), asked["layer"], asked["home"], os.getppid())
    # From here on this is the process of one program.
    job = _job(given)
    try:
        if asked["layer"] == server.NONE:
            walls.limit(job["seconds"], job["memory"])
            holes: list[str] = []
        else:
            walls.put_up(job["folder"], seconds=job["seconds"], memory=job["memory"], parent=given.watcher)
            holes = walls.holes(names=asked["layer"] != server.NAMESPACES)
        refusal = f"the walls do not hold: {', '.join(holes)}" if holes else None
    except (OSError, KeyError, ValueError) as error:
        refusal = f"the walls cannot be put up: {error}"
    for module in [name for name in sys.modules if name.partition(".")[0] == "burnish"]:
        del sys.modules[module]
    os.write(given.report, (f"refused: {refusal}" if refusal else "ready\n").encode("utf-8", "backslashreplace"))
    os.close(given.report)
    if refusal:
        os._exit(1)
    _leave(_work(job["source"], job["name"], job.get("calls"), given.answers))


def _job(given: Given) -> dict[str, Any]:
    """The job, with the program's output and folder in place."""
    with open(given.job, "rb") as file:
        job: dict[str, Any] = json.loads(file.read())
    for number, descriptor in ((1, given.stdout), (2, given.stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(job["folder"])
    os.environ.update(HOME=job["folder"], TMPDIR=job["folder"])
    return job


def _work(source: str, name: str, calls: list[dict[str, Any]] | None, answers: int | None) -> int:
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


def _leave(status: int) -> NoReturn:
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


if __name__ == "__main__":
    main()
