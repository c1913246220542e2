"""The process that starts programs, and the one that waits for each: a fork costs less than a start of Python.

The server has imported what programs mostly need, has gone into its namespaces and behind its walls, and then forks twice
for each request: a watcher, first in a process namespace of its own where there are namespaces, and the program, which
goes on behind walls of its own. The server reads no program, so that no later one can find an earlier one's text in its
memory: the descriptor that a request brings is read by the program's process. What a program does to Python is gone
with its process.

Only the standard library is imported here: this runs in a bare Python.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
from typing import NamedTuple, NoReturn

from burnish.sandbox.linux import confine as walls
from burnish.sandbox.linux import namespaces, seccomp
from burnish.sandbox.names import NAMESPACES

END = struct.Struct("=iq")
"""How a watcher says what became of its program: status as of wait(2), and the largest resident set as of getrusage(2)."""
_MOST_DESCRIPTORS = 6


class Given(NamedTuple):
    """What a program's process has: descriptors, and the process that waits for it."""

    job: int
    stdout: int
    stderr: int
    report: int
    answers: int | None
    watcher: int


def serve(channel: socket.socket, layer: str, home: str, outside: int) -> Given:
    """Goes behind the walls, says so on the channel, and starts programs until the channel's other end is closed.

    Returns in each program's process, and nowhere else.

    Args:
        layer: "namespaces" or "landlock".
        home: a folder with the folders ``root``, which is empty, and ``programs``.
        outside: a process that must be out of reach in namespaces.
    """
    try:
        _shut_in(layer, home, outside)
    except (OSError, KeyError, ValueError) as error:
        channel.send(f"refused: {error}".encode("utf-8", "backslashreplace"))
        os._exit(1)
    # Watchers leave no zombies behind.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    channel.send(b"ready")
    while True:
        # No more is read of a request than its descriptors.
        asked, descriptors, *_ = socket.recv_fds(channel, 1, _MOST_DESCRIPTORS)
        if not asked:
            os._exit(0)
        with contextlib.suppress(OSError):  # the other end of ``control`` hears that nobody waits
            if (namespaces.fork_first() if layer == NAMESPACES else os.fork()) == 0:
                channel.close()
                return watch(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _shut_in(layer: str, home: str, outside: int) -> None:
    programs = os.path.join(home, "programs")
    readable = walls.places()
    if layer == NAMESPACES:
        namespaces.enter(
            os.path.join(home, "root"), read=readable, write=programs, devices=["/dev/null"], hidden=walls.installed()
        )
        found = _tried(outside)
        if found:
            raise OSError(f"the namespaces do not hold: {', '.join(found)}")
        # Every program is the second process of its namespace, and its filter is made once.
        seccomp.program(2)
    else:
        os.chdir("/")
    walls.around_all(programs)


def _tried(outside: int) -> list[str]:
    """What the first process of a new process namespace can do although it should not."""
    read, write = os.pipe()
    child = namespaces.fork_first()
    if child == 0:
        try:
            os.write(write, json.dumps(namespaces.holes(outside)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return list(json.loads(said)) if said else ["no attack was tried"]


def watch(descriptors: list[int]) -> Given:
    """Starts a program's process, in which it returns, and waits for its end or for the end of who asked.

    Args:
        descriptors: ``control``, over which goes how the program ended and whose other end, shut down, ends it; then
            those of ``Given``.
    """
    control, *rest = descriptors
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    own = os.getpid()
    program = os.fork()
    if program:
        for descriptor in rest:
            os.close(descriptor)
        _wait(program, control, read)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in (control, read, write):
        os.close(descriptor)
    # With its group, what it has started ends too, where no wall keeps it from starting anything.
    os.setsid()
    job, stdout, stderr, report = rest[:4]
    return Given(job, stdout, stderr, report, rest[4] if len(rest) > 4 else None, own)


def _over(program: int) -> bool:
    if not hasattr(os, "waitid"):  # macOS, where one that stops is taken for one that ends
        return True
    return os.waitid(os.P_PID, program, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(program: int, control: int, ended: int) -> NoReturn:
    try:
        # The parent is told of a program that stops itself too, and goes on waiting.
        while control not in select.select([control, ended], [], [])[0] and not _over(program):
            os.read(ended, 64)
    finally:
        # It has not been waited for: the number is its own still, be it dead or alive.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(OSError):
                kill(program, signal.SIGKILL)
        _, status, used = os.wait4(program, 0)
        with contextlib.suppress(OSError):
            os.write(control, END.pack(status, used.ru_maxrss))
        os._exit(0)
