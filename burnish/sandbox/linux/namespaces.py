"""Namespaces of its own: no process, no network and no file of outside has so much as a name in there.

No privilege is needed where the kernel lets an ordinary user make a user namespace. What bubblewrap does with
``--unshare-all --disable-userns`` is done here with the same system calls: that needs no program installed, and lets one
process enter once and start every program from in there.

Source: namespaces(7), user_namespaces(7), pid_namespaces(7), mount_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterable

from burnish.sandbox.linux import kernel

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NETWORK, _NEW_CGROUP = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x02000000,
)  # fmt: skip
_BIND, _RECURSIVE, _PRIVATE = 4096, 1 << 14, 1 << 18
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_READ_ONLY_ATTRIBUTE, _NOSUID_ATTRIBUTE = 1, 2
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
INSIDE = 65534
"""User and group as the programs see them; outside they are those of the process that entered."""


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("user", ctypes.c_uint64),
    )  # fmt: skip


def enter(root: str, *, read: Iterable[str], write: str, devices: Iterable[str], hidden: Iterable[str]) -> None:
    """Moves this process, for good, to where there is nothing but what is named. Its process id stays: what it starts
    with ``fork_first`` is in a process namespace of its own.

    Args:
        root: an empty folder on which the new tree is mounted; outside, it stays empty.
        read: folders and files that are to be there, at their own paths; they cannot be written to.
        write: the folder that can.
        devices: device files that are to be there.
        hidden: folders below those of ``read`` that are to be empty.

    Raises:
        OSError: the kernel refuses; this process may be half in, and must not go on.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.call("unshare", _NEW_USER | _NEW_MOUNTS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS | _NEW_CGROUP)
    _say("/proc/self/setgroups", "deny")
    _say("/proc/self/uid_map", f"{INSIDE} {user} 1")
    _say("/proc/self/gid_map", f"{INSIDE} {group} 1")
    # No user namespace within this one, whatever else may fail.
    _say("/proc/sys/user/max_user_namespaces", "0")
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "size=1m,mode=0755")
    with os.scandir("/") as entries:
        # The C library is found by way of /lib and /lib64, which mostly are links.
        for entry in entries:
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), root + entry.path)
    for path in read:
        _bind(path, root, _READ_ONLY_ATTRIBUTE | _NOSUID_ATTRIBUTE)
    for path in devices:
        _bind(path, root, _NOSUID_ATTRIBUTE)
    nothing = root + "/nothing"
    os.mkdir(nothing, 0o555)
    for path in hidden:
        if os.path.isdir(root + path):
            _mount(nothing, root + path, None, _BIND)
    _bind(write, root, _NOSUID_ATTRIBUTE)
    os.chdir(root)
    kernel.call("pivot_root", b".", b".")
    # The old tree now lies on top of the new one, at the same place.
    kernel.call("umount2", b".", _DETACH)
    os.chdir("/")
    _set_attributes("/", _READ_ONLY_ATTRIBUTE, recursive=False)


def _say(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    given = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    kernel.call("mount", *given[:3], flags, given[3])


def _bind(path: str, root: str, attributes: int) -> None:
    """A path of outside, at the same place below the new root; by its real name too where it leads over a link."""
    for name in dict.fromkeys((path, os.path.realpath(path))):
        place = root + name
        if os.path.isdir(name):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if not os.path.exists(place):
                os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(name, place, None, _BIND | _RECURSIVE)
        _set_attributes(place, attributes, recursive=True)


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    flags = _AT_RECURSIVE if recursive else 0
    wanted = _Attributes(attributes, 0, 0, 0)
    kernel.call("mount_setattr", _AT_FDCWD, os.fsencode(path), flags, wanted, ctypes.sizeof(wanted))


def fork_first() -> int:
    """Forks into a process namespace of the child's own, in which it is the first: with its end, all in there ends.

    The child is a copy that Python was not told of (``os.fork`` could make no namespace): it may not use what Python
    mends after a fork, such as locks of other threads. It may fork in its turn, after which all is as usual.
    """
    return kernel.call("clone", _NEW_PID | signal.SIGCHLD, 0, 0, 0, 0)


def _signal_outside(outside: int) -> None:
    os.kill(outside, 0)


def _see_processes(_: int) -> None:
    os.stat("/proc/self")


def _see_files(_: int) -> None:
    os.stat("/etc/passwd")


def _reach_out(_: int) -> None:
    with socket.socket() as line:
        try:
            line.connect(("127.0.0.1", 1))
        except OSError as error:
            # That nobody listens there can only be told by a network that is there.
            if error.errno != errno.ECONNREFUSED:
                raise


def _nest(_: int) -> None:
    kernel.call("unshare", _NEW_USER)


ATTACKS: dict[str, Callable[[int], None]] = {
    "signalling a process outside": _signal_outside,
    "seeing processes": _see_processes,
    "seeing /etc/passwd": _see_files,
    "connecting to this machine": _reach_out,
    "making a user namespace": _nest,
}
"""Tried from inside when the namespaces are new, before any other wall is up; each gets a process id of outside."""


def holes(outside: int) -> list[str]:
    """What the first process of a new namespace can do although it should not; empty where the namespaces hold."""
    found = [] if os.getpid() == 1 and os.getppid() == 0 else ["it is not the first process"]
    for name, attack in ATTACKS.items():
        try:
            attack(outside)
        except OSError:
            continue
        found.append(f"{name} succeeded")
    return found
