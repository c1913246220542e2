"""Linux namespaces that hide all outside processes, networks and files.

No privileges are needed if the kernel lets an ordinary user create a user namespace. The system calls are those of
bubblewrap with ``--unshare-all --disable-userns``; here, one process enters once and starts every program inside.

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
INSIDE_ID = 65534
"""User and group id inside. Outside, they are those of the process that entered."""


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))


def enter(root: str, *, read: Iterable[str], write: str, devices: Iterable[str], hidden: Iterable[str]) -> None:
    """Move this process irrevocably into new namespaces, except that of processes, that contain only the given paths.

    Args:
        root: an empty folder on which the new file tree is mounted. From outside it still looks empty.
        read: folders and files to show read-only, at their own paths.
        write: the folder to show writable.
        devices: device files to show.
        hidden: folders below those in ``read`` to replace by empty ones.

    Raises:
        OSError: the kernel refused a step. The process may be partly moved and must end.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.syscall("unshare", _NEW_USER | _NEW_MOUNTS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS | _NEW_CGROUP)
    _write_text("/proc/self/setgroups", "deny")
    _write_text("/proc/self/uid_map", f"{INSIDE_ID} {user} 1")
    _write_text("/proc/self/gid_map", f"{INSIDE_ID} {group} 1")
    # Forbids nested user namespaces, even if another protection fails.
    _write_text("/proc/sys/user/max_user_namespaces", "0")
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "size=1m,mode=0755")
    with os.scandir("/") as entries:
        # The C library is found through /lib and /lib64, which are usually links.
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
    kernel.syscall("pivot_root", b".", b".")
    # The old tree is now mounted on top of the new one, at the same path.
    kernel.syscall("umount2", b".", _DETACH)
    os.chdir("/")
    _set_attributes("/", _READ_ONLY_ATTRIBUTE, recursive=False)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    kernel.syscall("mount", *encoded[:3], flags, encoded[3])


def _bind(path: str, root: str, attributes: int) -> None:
    """Mount an outside path at the same path below the new root, and at its real path if that differs."""
    for name in dict.fromkeys((path, os.path.realpath(path))):
        target = root + name
        if os.path.isdir(name):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.exists(target):
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(name, target, None, _BIND | _RECURSIVE)
        _set_attributes(target, attributes, recursive=True)


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    flags, wanted = _AT_RECURSIVE if recursive else 0, _Attributes(attributes, 0, 0, 0)
    kernel.syscall("mount_setattr", _AT_FDCWD, os.fsencode(path), flags, wanted, ctypes.sizeof(wanted))


def fork_into_pid_namespace() -> int:
    """Fork a child that is the first process of a new process namespace; return as ``os.fork`` does.

    When the child ends, the kernel kills all other processes in its namespace. ``os.fork`` cannot create a namespace,
    so Python does not know of this fork and runs no after-fork handlers: the child must not use state that they repair,
    such as locks of other threads. Processes that it creates with ``os.fork`` are not restricted in this way.
    """
    return kernel.syscall("clone", _NEW_PID | signal.SIGCHLD, 0, 0, 0, 0)


def _connect(_: int) -> None:
    with socket.socket() as connection:
        try:
            connection.connect(("127.0.0.1", 1))
        except OSError as error:
            # "Connection refused" shows that a network exists.
            if error.errno != errno.ECONNREFUSED:
                raise


ATTACKS: dict[str, Callable[[int], object]] = {
    "signalling a process outside": lambda outside: os.kill(outside, 0),
    "seeing processes": lambda _: os.stat("/proc/self"),
    "seeing /etc/passwd": lambda _: os.stat("/etc/passwd"),
    "connecting to this machine": _connect,
    "making a user namespace": lambda _: kernel.syscall("unshare", _NEW_USER),
}
"""Tried inside new namespaces, before any other restriction applies. Each takes the id of an outside process."""


def find_namespace_leaks(outside: int) -> list[str]:
    """Attack the namespaces from their first process; return the attacks that succeeded."""
    leaks = [] if os.getpid() == 1 and os.getppid() == 0 else ["it is not the first process"]
    for name, attack in ATTACKS.items():
        try:
            attack(outside)
        except OSError:
            continue
        leaks.append(f"{name} succeeded")
    return leaks
