"""Server process that forks programs, and the supervisor of each. A fork is faster than starting Python.

The server imports common modules, confines itself and then forks once per request. The child is the supervisor; in the
layer ``namespaces`` it is the first process of a new process namespace. It forks the program's process, which confines
itself further. The server never reads a program, so no later program can find its text in inherited memory: a request
brings a descriptor, which only the program's process reads.

This module runs in a Python without site-packages, so it imports only the standard library and the sandbox.
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

from burnish.sandbox.linux import confine, namespaces, seccomp
from burnish.sandbox.names import NAMESPACES

EXIT_RECORD = struct.Struct("=iq")
"""A supervisor's report: wait(2) status of the program and its largest resident set as in getrusage(2)."""
_MAX_DESCRIPTORS = 6


class ProgramContext(NamedTuple):
    """Descriptors of a program's process, and the id of its supervisor."""

    job: int
    stdout: int
    stderr: int
    report: int
    answers: int | None
    supervisor: int


def serve(channel: socket.socket, layer: str, home: str, outside: int) -> ProgramContext:
    """Confine this process, report it on the channel, and fork programs until the channel's other end is closed.

    Returns only in the programs' processes.

    Args:
        channel: a socket of type SOCK_SEQPACKET that brings one packet with descriptors per program.
        layer: "namespaces" or "landlock".
        home: a folder with the subfolders ``root`` (empty) and ``programs``.
        outside: id of a process that must be unreachable from the namespaces.
    """
    try:
        _confine(layer, home, outside)
    except (OSError, KeyError, ValueError) as error:
        channel.send(f"refused: {error}".encode("utf-8", "backslashreplace"))
        os._exit(1)
    # The kernel reaps supervisors, so none become zombies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    channel.send(b"ready")
    while True:
        # Of a request, the server reads only its descriptors.
        packet, descriptors, *_ = socket.recv_fds(channel, 1, _MAX_DESCRIPTORS)
        if not packet:
            os._exit(0)
        with contextlib.suppress(OSError):  # fork failed: closing ``control`` below tells the requester
            if (namespaces.fork_into_pid_namespace() if layer == NAMESPACES else os.fork()) == 0:
                channel.close()
                return fork_program(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _confine(layer: str, home: str, outside: int) -> None:
    programs = os.path.join(home, "programs")
    readable = confine.library_paths()
    if layer == NAMESPACES:
        namespaces.enter(
            os.path.join(home, "root"), read=readable, write=programs, devices=["/dev/null"],
            hidden=confine.site_packages_folders(),
        )  # fmt: skip
        leaks = _probe_namespaces(outside)
        if leaks:
            raise OSError(f"the namespaces leak: {', '.join(leaks)}")
        # Every program has process id 2 in its namespace, so the filter is built once and cached.
        seccomp.build_filter(2)
    else:
        os.chdir("/")
    confine.confine_server(programs)


def _probe_namespaces(outside: int) -> list[str]:
    """Fork a process into a new process namespace and return the attacks that succeeded there."""
    read, write = os.pipe()
    child = namespaces.fork_into_pid_namespace()
    if child == 0:
        try:
            os.write(write, json.dumps(namespaces.find_namespace_leaks(outside)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        leaks = pipe.read()
    os.waitpid(child, 0)
    return list(json.loads(leaks)) if leaks else ["no attack was tried"]


def fork_program(descriptors: list[int]) -> ProgramContext:
    """Fork a program's process and supervise it. Returns only in the program's process.

    The descriptors are ``control``, a socket, and those of ``ProgramContext``. The supervisor writes an ``EXIT_RECORD``
    to ``control``, and kills the program when its other end is shut down or closed.
    """
    control, *rest = descriptors
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    supervisor = os.getpid()
    program = os.fork()
    if program:
        for descriptor in rest:
            os.close(descriptor)
        _wait(program, control, read)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in (control, read, write):
        os.close(descriptor)
    # In the layer ``none`` a program can start processes: its process group is killed with it.
    os.setsid()
    job, stdout, stderr, report = rest[:4]
    return ProgramContext(job, stdout, stderr, report, rest[4] if len(rest) > 4 else None, supervisor)


def _has_ended(program: int) -> bool:
    if not hasattr(os, "waitid"):  # macOS: a stopped program is treated as ended
        return True
    return os.waitid(os.P_PID, program, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(program: int, control: int, ended: int) -> NoReturn:
    try:
        # SIGCHLD also arrives when a program is stopped; the supervisor then continues to wait.
        while control not in select.select([control, ended], [], [])[0] and not _has_ended(program):
            os.read(ended, 64)
    finally:
        # The program has not been reaped, so its process id cannot have been reused.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(OSError):
                kill(program, signal.SIGKILL)
        _, status, used = os.wait4(program, 0)
        with contextlib.suppress(OSError):
            os.write(control, EXIT_RECORD.pack(status, used.ru_maxrss))
        os._exit(0)
