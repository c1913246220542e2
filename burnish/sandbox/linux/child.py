"""Entry point of the sandbox's Python: forks a process per program, which confines itself and runs the program.

``burnish.sandbox.linux.forked`` starts this file with one argument of JSON, without site-packages. After a program's
first line, anything that its process writes may be forged; see ``burnish.sandbox.answers``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.sandbox.linux.server import ProgramContext

COMMON_MODULES = (
    "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "linecache", "math", "operator", "random", "re", "statistics", "string", "time", "traceback", "typing",
)  # fmt: skip
"""Modules that the server imports once for all programs."""
NUMPY_MODULES = (
    "numpy", "numpy.char", "numpy.ctypeslib", "numpy.fft", "numpy.lib.stride_tricks", "numpy.linalg", "numpy.ma",
    "numpy.polynomial", "numpy.random", "numpy.rec", "numpy.strings", "numpy.typing",
)  # fmt: skip


def main() -> None:
    options = json.loads(sys.argv[1])
    sys.path.append(options["package"])
    from burnish.sandbox import names, program
    from burnish.sandbox.linux import confine, server

    sys.path.remove(options["package"])
    if options["numpy"] is not None:
        _import_numpy(options["numpy"])
    if options["layer"] == names.NONE:
        context = server.fork_program(options["descriptors"])
    else:
        for name in COMMON_MODULES:
            __import__(name)
        context = server.serve(
            socket.socket(fileno=options["channel"]), options["layer"], options["home"], os.getppid()
        )
    # Only the process of a single program gets here.
    job = _load_job(context)
    try:
        if options["layer"] == names.NONE:
            confine.set_limits(job["seconds"], job["memory"])
            leaks: list[str] = []
        else:
            confine.confine_program(
                job["folder"], seconds=job["seconds"], memory=job["memory"], parent=context.supervisor
            )
            leaks = confine.find_leaks(names=options["layer"] != names.NAMESPACES)
        refusal = f"the confinement leaks: {', '.join(leaks)}" if leaks else None
    except (OSError, KeyError, ValueError) as error:
        refusal = f"the confinement could not be set up: {error}"
    for module in [name for name in sys.modules if name.partition(".")[0] == "burnish"]:
        del sys.modules[module]
    os.write(context.report, (f"refused: {refusal}" if refusal else "ready\n").encode("utf-8", "backslashreplace"))
    os.close(context.report)
    if refusal:
        os._exit(1)
    program.exit_process(
        program.execute(job["source"], job["name"], job.get("calls"), context.answers, job.get("stdin"))
    )


def _import_numpy(folder: str) -> None:
    """Import numpy for all programs, which may not read its files, and fix its seed, so that rewards are reproducible."""
    from burnish.sandbox.linux import confine

    confine.library_paths()  # kept for the confinement: numpy's libraries are none of those that programs may read
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ.update(single)  # a program cannot start threads
    sys.path.append(folder)
    for name in NUMPY_MODULES:
        __import__(name)
    sys.path.remove(folder)
    for name in single:
        del os.environ[name]
    sys.path_importer_cache.pop(folder, None)
    sys.modules["numpy"].random.seed(0)


def _load_job(context: ProgramContext) -> dict[str, Any]:
    """Read the job; redirect standard output and error, and enter the program's folder."""
    with open(context.job, "rb") as file:
        job: dict[str, Any] = json.loads(file.read())
    for number, descriptor in ((1, context.stdout), (2, context.stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(job["folder"])
    os.environ.update(HOME=job["folder"], TMPDIR=job["folder"])
    return job


if __name__ == "__main__":
    main()
