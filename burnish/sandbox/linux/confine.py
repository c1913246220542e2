"""The walls around a program, put up by the process that will run it, and tried before the program's first line.

Only the standard library is imported here: this runs in a bare Python.
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
_INSTALLED = ("site-packages", "dist-packages")
_DATA = ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom")


def around_all(programs: str) -> None:
    """Shuts the process in that starts programs: none of them can ever reach more than it.

    Args:
        programs: the folder that holds the programs' own folders.

    Raises:
        OSError: the kernel refuses a part; nothing may be run then.
    """
    # Without it, another process of this user, a program among them, could look in.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    rules = landlock.ruleset(read=readable(), write=[programs], use=["/dev/null"], names=listable())
    landlock.restrict(rules)
    os.close(rules)


def put_up(folder: str, *, seconds: float, memory: int, parent: int) -> None:
    """Shuts a program's process in for good: limits, no privileges, Landlock, the filter of system calls.

    Args:
        folder: the one folder in which it may write.
        seconds: of processor time; a second more is granted, since the parent's clock is the one that decides.
        memory: bytes of address space.
        parent: the process without which this one must not live.

    Raises:
        OSError: the kernel refuses a part; nothing may be run then.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the process that started the sandbox is gone")
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    # What is readable was narrowed by ``around_all``: a file is opened only where both sets of rules let it.
    rules = landlock.ruleset(read=places(), write=[folder], use=["/dev/null"], names=listable())
    limit(seconds, memory)
    kernel.drop_capabilities()
    landlock.restrict(rules)
    os.close(rules)
    seccomp.install()


def limit(seconds: float, memory: int) -> None:
    """Limits on processor time, address space, processes, file sizes, descriptors and core files.

    Raises:
        OSError, ValueError: the system does not take one.
    """
    processor = math.ceil(seconds) + 1
    for which, soft, hard in (
        (resource.RLIMIT_CPU, processor, processor + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        # A limit that is lower already stays.
        _, most = resource.getrlimit(which)
        top = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(which, (min(soft, top), top))


def readable() -> list[str]:
    """Python's standard library without its site-packages, and the folders of the shared libraries in use.

    Site-packages are left out because data sets are installed there, and with them the answers to a task.
    """
    found: list[str] = []
    for library in listable():
        with os.scandir(library) as entries:
            found += [entry.path for entry in entries if entry.name not in _INSTALLED]
    # In namespaces, some distributions' links into /etc lead nowhere.
    return [path for path in (*found, *_libraries()) if os.path.exists(path)]


def places() -> list[str]:
    """What ``readable`` names, in few words: site-packages lie within."""
    return [*listable(), *_libraries()]


def installed() -> list[str]:
    """The folders of installed packages within ``places``."""
    return [os.path.join(library, name) for library in listable() for name in _INSTALLED]


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Folders and files outside the standard library; asked while /proc is there, and kept."""
    found: list[str] = []
    packages = os.path.realpath(os.path.dirname(os.__file__))
    for folder in _library_folders():
        # A folder that holds Python's own library holds site-packages too, so its files are named one by one.
        if packages.startswith(folder + os.sep):
            with os.scandir(folder) as entries:
                found += [entry.path for entry in entries if ".so" in entry.name and not entry.is_dir()]
        elif not folder.startswith(packages):
            found.append(folder)
    return tuple(path for path in (*found, *_DATA) if os.path.exists(path))


@functools.cache
def listable() -> list[str]:
    """Folders in which Python looks for modules, and therefore lists names."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    compiled = os.path.join(sys.base_exec_prefix, sys.platlibdir, version)
    return sorted({folder for folder in (os.path.dirname(os.__file__), compiled) if os.path.isdir(folder)})


def _library_folders() -> set[str]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        files = {line.split(maxsplit=5)[5].rstrip("\n") for line in lines if line.count(" ") >= 5 and "/" in line}
    return {os.path.dirname(os.path.realpath(file)) for file in files if ".so" in os.path.basename(file)}


def _read_outside() -> None:
    with open("/etc/passwd", "rb"):
        pass


def _list_outside() -> None:
    os.listdir("/")


def _open_socket() -> None:
    os.close(kernel.call("socket", 2, 1, 0))


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _signal_parent() -> None:
    os.kill(os.getppid(), 0)


ATTACKS: dict[str, Callable[[], None]] = {
    "reading /etc/passwd": _read_outside,
    "listing /": _list_outside,
    "opening a socket": _open_socket,
    "starting a process": _fork,
    "signalling the parent": _signal_parent,
}


def holes(*, names: bool = True) -> list[str]:
    """What this process can do although the walls should stop it; empty where they hold.

    Args:
        names: whether files of outside have names here; where they have none, /etc/passwd may be missing.
    """
    expected = (errno.EPERM, errno.EACCES) if names else (errno.EPERM, errno.EACCES, errno.ENOENT)
    found = []
    for name, attack in ATTACKS.items():
        try:
            attack()
        except OSError as error:
            # A failure for any other reason proves nothing about the walls.
            if error.errno not in expected:
                found.append(f"{name} failed for another reason ({error.strerror})")
        else:
            found.append(f"{name} succeeded")
    return found
