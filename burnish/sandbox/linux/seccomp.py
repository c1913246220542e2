"""A seccomp filter that lets through what a Python program needs and answers EPERM to everything else.

The filter is an allow-list: a system call that is not named here, be it from next year's kernel, is refused. Of some
calls only certain arguments pass: signals to oneself, ``fcntl`` without F_SETOWN and F_SETSIG (with which a process of
the same user can be sent SIGKILL), ``prlimit`` that only reads, socket pairs that lead nowhere. There are no processes
and no threads: Linux does not count root's, so nothing but the filter could bound them.

Source: seccomp(2), Documentation/userspace-api/seccomp_filter.rst; classic BPF as in linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from burnish.sandbox.linux import kernel

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06

ALLOWED = (
    # What is open already, and the files that Landlock leaves.
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "open", "openat", "creat", "close",
    "close_range", "stat", "fstat", "lstat", "newfstatat", "statx", "fstatfs", "lseek", "access", "faccessat",
    "faccessat2", "getdents64", "getcwd", "chdir", "fchdir", "rename", "renameat", "renameat2", "mkdir", "mkdirat",
    "rmdir", "unlink", "unlinkat", "symlink", "symlinkat", "readlink", "readlinkat", "ftruncate", "fallocate", "fsync",
    "fdatasync", "flock", "umask", "fadvise64", "dup", "dup2", "dup3", "pipe", "pipe2",
    # Memory.
    "mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "membarrier",
    # Waiting.
    "select", "pselect6", "poll", "ppoll", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2",
    "nanosleep", "clock_nanosleep", "pause", "alarm", "getitimer", "setitimer", "sched_yield", "futex", "wait4",
    # Time and who I am.
    "clock_gettime", "clock_getres", "gettimeofday", "time", "times", "getrusage", "getpid", "gettid", "getppid",
    "getpgrp", "getuid", "geteuid", "getgid", "getegid", "getgroups", "uname", "getrandom",
    # Signals of this process, and what the C library asks when it starts and ends.
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "rt_sigsuspend",
    "sigaltstack", "set_robust_list", "set_tid_address", "rseq", "exit", "exit_group",
    # Over socket pairs, the only sockets that can be made.
    "sendto", "recvfrom", "shutdown", "getsockname", "getpeername",
)  # fmt: skip

ABSENT = ("clone3", "openat2")
"""Answered with ENOSYS: their arguments lie in memory, where a filter cannot look, and the C library has another way."""

_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, the locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ."""
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""


class _Word(NamedTuple):
    """One condition: a 32-bit word of an argument, masked, is one of some values."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    high: bool = False


def _conditions(pid: int) -> dict[str, tuple[_Word, ...]]:
    return {
        "kill": (_Word(0, (pid,)),),
        "tgkill": (_Word(0, (pid,)),),
        "fcntl": (_Word(1, _FCNTL),),
        "ioctl": (_Word(1, _IOCTL),),
        # AF_UNIX, and SOCK_STREAM: a datagram socket could be sent from to any address.
        "socketpair": (_Word(0, (1,)), _Word(1, (1,), mask=0xF), _Word(2, (0,))),
        "prlimit64": (_Word(0, (0, pid)), _Word(2, (0,)), _Word(2, (0,), high=True)),
        "sched_getaffinity": (_Word(0, (0, pid)),),
    }


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def _block(words: Sequence[_Word]) -> list[bytes]:
    """Instructions that allow where every condition holds, and refuse otherwise."""
    block: list[bytes] = []
    for word in words:
        block.append(_instruction(_LOAD, 16 + 8 * word.argument + 4 * word.high))
        if word.mask != 0xFFFFFFFF:
            block.append(_instruction(_AND, word.mask))
        for index, value in enumerate(word.values):
            # A match jumps over the other values and the refusal behind them.
            block.append(_instruction(_JUMP_EQUAL, value, jt=len(word.values) - index))
        block.append(_instruction(_RETURN, _ERRNO | errno.EPERM))
    return [*block, _instruction(_RETURN, _ALLOW)]


@functools.cache
def program(pid: int, machine: str | None = None) -> bytes:
    """The filter as BPF instructions, 8 bytes each.

    Args:
        pid: the process that the filter is for; the only one it may signal.
        machine: "x86_64" or "aarch64"; this machine if left out.

    Raises:
        KeyError: there is no table of system calls for the machine.
    """
    name = machine or kernel.machine()
    code = [
        _instruction(_LOAD, 4),
        _instruction(_JUMP_EQUAL, kernel.ARCHITECTURES[name], jt=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),
    ]
    for call, words in _conditions(pid).items():
        which = kernel.number(call, name)
        assert which is not None
        block = _block(words)
        code += [_instruction(_JUMP_EQUAL, which, jf=len(block)), *block]
    for call in ABSENT:
        which = kernel.number(call, name)
        assert which is not None
        code += [_instruction(_JUMP_EQUAL, which, jf=1), _instruction(_RETURN, _ERRNO | errno.ENOSYS)]
    for call in ALLOWED:
        which = kernel.number(call, name)
        if which is not None:
            code += [_instruction(_JUMP_EQUAL, which, jf=1), _instruction(_RETURN, _ALLOW)]
    return b"".join([*code, _instruction(_RETURN, _ERRNO | errno.EPERM)])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> None:
    """Puts the filter on this process for good; nothing takes it off again.

    Raises:
        KernelError: the kernel refused.
    """
    code = program(os.getpid())
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    mode_filter = 2
    kernel.prctl(kernel.PR_SET_SECCOMP, mode_filter, _Program(len(code) // 8, code))
