"""What runs inside: a bare Python that forks a process a program, which puts its walls up, tries them, and runs it.

``burnish.sandbox.layers`` starts it as a file, with one argument of JSON. Everything that is heard of a program after
its first line may be the program's own invention; see ``burnish.sandbox.answers`` for what that leaves to be trusted.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.sandbox.linux.server import Given

USUAL = (
    "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "linecache", "math", "operator", "random", "re", "statistics", "string", "time", "traceback", "typing",
)  # fmt: skip
"""Imported once for all programs, where a process serves many."""


def main() -> None:
    asked = json.loads(sys.argv[1])
    sys.path.append(asked["package"])
    from burnish.sandbox import names, program
    from burnish.sandbox.linux import confine as walls
    from burnish.sandbox.linux import server

    sys.path.remove(asked["package"])
    if asked["layer"] == names.NONE:
        given = server.watch(asked["descriptors"])
    else:
        for name in USUAL:
            __import__(name)
        given = server.serve(socket.socket(fileno=asked["channel"]), asked["layer"], asked["home"], os.getppid())
    # From here on this is the process of one program.
    job = _job(given)
    try:
        if asked["layer"] == names.NONE:
            walls.limit(job["seconds"], job["memory"])
            holes: list[str] = []
        else:
            walls.put_up(job["folder"], seconds=job["seconds"], memory=job["memory"], parent=given.watcher)
            holes = walls.holes(names=asked["layer"] != names.NAMESPACES)
        refusal = f"the walls do not hold: {', '.join(holes)}" if holes else None
    except (OSError, KeyError, ValueError) as error:
        refusal = f"the walls cannot be put up: {error}"
    for module in [name for name in sys.modules if name.partition(".")[0] == "burnish"]:
        del sys.modules[module]
    os.write(given.report, (f"refused: {refusal}" if refusal else "ready\n").encode("utf-8", "backslashreplace"))
    os.close(given.report)
    if refusal:
        os._exit(1)
    program.leave(program.work(job["source"], job["name"], job.get("calls"), given.answers))


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


if __name__ == "__main__":
    main()
