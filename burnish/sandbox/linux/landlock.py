"""Landlock: restricts this process to files below given folders. Needs no privileges.

Source: landlock(7), Documentation/userspace-api/landlock.rst, linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from burnish.sandbox.linux import kernel

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14
READ = _READ_FILE | _READ_DIR
LIST = _READ_DIR
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
USE_FILE = _READ_FILE | _WRITE_FILE | _TRUNCATE

_FILES_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""ABI version -> mask of all file rights that it knows. A version not listed uses the one below it."""
_ALL_TCP = 0b11
"""Bind and connect, from version 4."""
_ALL_SCOPES = 0b11
"""Abstract UNIX sockets and signals to processes outside, from version 6."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Return the kernel's Landlock ABI version; 0 if Landlock is missing or disabled."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, 0, 1)
    except (OSError, KeyError):
        return 0


def create_ruleset(
    read: Iterable[str], write: Iterable[str], use: Iterable[str] = (), names: Iterable[str] = ()
) -> int:
    """Create a ruleset for ``restrict``; return its file descriptor.

    Args:
        read: folders or files that may be read.
        write: folders in which files and folders may be created, changed and removed.
        use: single files that may be read and written, such as /dev/null.
        names: folders that may be listed at any depth, but whose files may not be read.

    Raises KernelError without Landlock in the kernel, OSError if a path does not exist.
    """
    abi = version()
    if not abi:
        raise kernel.KernelError(95, "this kernel does not support Landlock")
    known = _FILES_BY_ABI[max(listed for listed in _FILES_BY_ABI if listed <= abi)]
    attributes = _Ruleset(known, _ALL_TCP if abi >= 4 else 0, _ALL_SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = kernel.syscall("landlock_create_ruleset", attributes, size, 0)
    for paths, rights in ((read, READ), (write, WRITE), (use, USE_FILE), (names, LIST)):
        for path in paths:
            _allow(rules, path, rights & known)
    return rules


def _allow(rules: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= USE_FILE
        beneath = 1
        kernel.syscall("landlock_add_rule", rules, beneath, _PathRule(rights, descriptor), 0)
    finally:
        os.close(descriptor)


def restrict(rules: int) -> None:
    """Apply a ruleset to this process irrevocably. Raises KernelError."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.syscall("landlock_restrict_self", rules, 0)
