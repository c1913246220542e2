"""What runs inside: a bare Python reads its job, puts the walls up, tries them, and then runs the program.

``burnish.sandbox.run`` starts it as a file. Everything the parent hears after the program's
first line may be the program's own invention; see ``burnish.sandbox.answers`` for what that leaves to be trusted.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

MEMORY_STATUS = 77


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    refusal = _shut_in(job)
    os.write(job["report"], (f"refused: {refusal}" if refusal else "ready\n").encode("utf-8", "backslashreplace"))
    os.close(job["report"])
    if refusal:
        sys.exit(1)
    sys.exit(_work(job["source"], job["name"], job.get("calls"), job.get("answers")))


def _shut_in(job: dict[str, Any]) -> str | None:
    """Puts the walls up; the reason where they do not stand."""
    sys.path.append(job["package"])
    from burnish.sandbox import walls

    sys.path.remove(job["package"])
    try:
        walls.put_up(job["folder"], seconds=job["seconds"], memory=job["memory"], parent=job["parent"])
    except (OSError, KeyError, ValueError) as error:
        return f"the walls cannot be put up: {error}"
    holes = walls.holes()
    for module in [name for name in sys.modules if name.partition(".")[0] == "burnish"]:
        del sys.modules[module]
    return f"the walls do not hold: {', '.join(holes)}" if holes else None


def _work(source: str, name: str, calls: list[dict[str, Any]] | None, answers: int | None) -> int:
    module = types.ModuleType("__main__")
    module.__file__ = name
    sys.modules["__main__"] = module
    sys.argv = [name]
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        if calls is None:
            raise
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
