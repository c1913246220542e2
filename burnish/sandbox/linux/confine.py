"""Confinement of a program, set up by its own process and tested there before the program's first line.

This module runs in a Python without site-packages, so it imports only the standard library and the sandbox.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import resource
import signal
import sys
from collections.abc import Callable

from burnish.sandbox.linux import kernel, landlock, seccomp
from burnish.sandbox.program import FILE_BYTES

OPEN_FILES = 32
_SITE_PACKAGES = ("site-packages", "dist-packages")
_DATA = ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom")


def confine_server(programs: str) -> None:
    """Confine the process that starts programs, which inherit its restrictions; ``programs`` contains their folders.

    Raises:
        OSError: the kernel refused a restriction; no program may be run.
    """
    # Keeps other processes of this user, programs among them, from reading this process's memory.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    rules = landlock.create_ruleset(read=readable_paths(), write=[programs], use=["/dev/null"], names=stdlib_folders())
    landlock.restrict(rules)
    os.close(rules)


def confine_program(folder: str, *, seconds: float, memory: int, parent: int) -> None:
    """Confine a program's process irrevocably: resource limits, no capabilities, Landlock, the seccomp filter.

    Args:
        folder: the only folder in which it may write.
        seconds, memory: as in ``set_limits``.
        parent: the process whose death kills this one.

    Raises:
        OSError: the kernel refused a restriction; the program must not be run.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the process that started the sandbox has ended")
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    # ``confine_server`` excludes site-packages already: a file can be opened only if both rulesets allow it.
    rules = landlock.create_ruleset(read=library_paths(), write=[folder], use=["/dev/null"], names=stdlib_folders())
    set_limits(seconds, memory)
    kernel.drop_capabilities()
    landlock.restrict(rules)
    os.close(rules)
    seccomp.install()


def set_limits(seconds: float, memory: int) -> None:
    """Limit processor time (seconds), address space (bytes), processes, file sizes, descriptors and core files.

    Raises OSError or ValueError if the system refused a limit.
    """
    processor = math.ceil(seconds) + 1  # higher, since the parent enforces wall-clock time
    for resource_id, soft, hard in (
        (resource.RLIMIT_CPU, processor, processor + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        # An existing limit that is lower stays in force.
        _, current = resource.getrlimit(resource_id)
        maximum = hard if current == resource.RLIM_INFINITY else min(hard, current)
        resource.setrlimit(resource_id, (min(soft, maximum), maximum))


def readable_paths() -> list[str]:
    """Return the standard library's entries except site-packages, and the paths of shared libraries.

    Site-packages may contain data sets, and with them the answers to a task.
    """
    paths: list[str] = []
    for library in stdlib_folders():
        with os.scandir(library) as entries:
            paths += [entry.path for entry in entries if entry.name not in _SITE_PACKAGES]
    # Some distributions link to files in /etc, which do not exist in the namespaces.
    return [path for path in (*paths, *_shared_library_paths()) if os.path.exists(path)]


def library_paths() -> list[str]:
    """Return the whole standard library folders and the paths of shared libraries. They include site-packages."""
    return [*stdlib_folders(), *_shared_library_paths()]


def site_packages_folders() -> list[str]:
    """Return the site-packages folders within ``library_paths()``."""
    return [os.path.join(library, name) for library in stdlib_folders() for name in _SITE_PACKAGES]


@functools.cache
def _shared_library_paths() -> tuple[str, ...]:
    """Return paths outside the standard library. Cached, since the first call needs /proc."""
    paths: list[str] = []
    packages = os.path.realpath(os.path.dirname(os.__file__))
    for folder in _library_folders():
        # A folder that contains the standard library contains site-packages too, so only its libraries are listed.
        if packages.startswith(folder + os.sep):
            with os.scandir(folder) as entries:
                paths += [entry.path for entry in entries if ".so" in entry.name and not entry.is_dir()]
        elif not folder.startswith(packages):
            paths.append(folder)
    return tuple(path for path in (*paths, *_DATA) if os.path.exists(path))


@functools.cache
def stdlib_folders() -> list[str]:
    """Return the standard library's folders. Python must be able to list them to import modules."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    compiled = os.path.join(sys.base_exec_prefix, sys.platlibdir, version)
    return sorted({folder for folder in (os.path.dirname(os.__file__), compiled) if os.path.isdir(folder)})


def _library_folders() -> set[str]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        files = {line.split(maxsplit=5)[5].rstrip("\n") for line in lines if line.count(" ") >= 5 and "/" in line}
    return {os.path.dirname(os.path.realpath(file)) for file in files if ".so" in os.path.basename(file)}


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


ATTACKS: dict[str, Callable[[], object]] = {
    "reading /etc/passwd": lambda: open("/etc/passwd", "rb").close(),
    "listing /": lambda: os.listdir("/"),
    "opening a socket": lambda: os.close(kernel.syscall("socket", 2, 1, 0)),
    "starting a process": _fork,
    "signalling the parent": lambda: os.kill(os.getppid(), 0),
}


def find_leaks(*, names: bool = True) -> list[str]:
    """Attack this process's confinement; return the attacks that did not fail as expected.

    Without ``names``, outside files are not visible by name, and /etc/passwd may be missing.
    """
    expected = (errno.EPERM, errno.EACCES) if names else (errno.EPERM, errno.EACCES, errno.ENOENT)
    leaks = []
    for name, attack in ATTACKS.items():
        try:
            attack()
        except OSError as error:
            # Any other failure proves nothing about the confinement.
            if error.errno not in expected:
                leaks.append(f"{name} failed for another reason ({error.strerror})")
        else:
            leaks.append(f"{name} succeeded")
    return leaks
