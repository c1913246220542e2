"""Seccomp filter that allows the system calls that a Python program needs and fails all others with EPERM.

The filter is an allow-list: it refuses every call that is not listed, including those of future kernels. Some calls
are allowed with certain arguments only: signals to the process itself, ``fcntl`` without F_SETOWN and F_SETSIG (which
can send SIGKILL to another process of the same user), ``prlimit`` for reading, and stream socket pairs. New processes
and threads are refused altogether: RLIMIT_NPROC does not apply to root, so only the filter can bound them.

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
    # Open descriptors, and the files that Landlock allows.
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
    # Time and identity.
    "clock_gettime", "clock_getres", "gettimeofday", "time", "times", "getrusage", "getpid", "gettid", "getppid",
    "getpgrp", "getuid", "geteuid", "getgid", "getegid", "getgroups", "uname", "getrandom",
    # The process's own signals, and what the C library calls when it starts and ends.
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "rt_sigsuspend",
    "sigaltstack", "set_robust_list", "set_tid_address", "rseq", "exit", "exit_group",
    # For socket pairs, the only sockets that can be created.
    "sendto", "recvfrom", "shutdown", "getsockname", "getpeername",
)  # fmt: skip

ABSENT = ("clone3", "openat2")
"""Fail with ENOSYS: a filter cannot read their arguments, which are in memory, and the C library has a fallback."""

_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, the locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ."""
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""


class _Condition(NamedTuple):
    """Condition on a system call: a 32-bit word of one argument, masked, must be one of several values."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    high: bool = False


def _conditions(pid: int) -> dict[str, tuple[_Condition, ...]]:
    return {
        "kill": (_Condition(0, (pid,)),),
        "tgkill": (_Condition(0, (pid,)),),
        "fcntl": (_Condition(1, _FCNTL),),
        "ioctl": (_Condition(1, _IOCTL),),
        # AF_UNIX and SOCK_STREAM only: a datagram socket could send to any address.
        "socketpair": (_Condition(0, (1,)), _Condition(1, (1,), mask=0xF), _Condition(2, (0,))),
        "prlimit64": (_Condition(0, (0, pid)), _Condition(2, (0,)), _Condition(2, (0,), high=True)),
        "sched_getaffinity": (_Condition(0, (0, pid)),),
    }


def _instruction(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def _compile_conditions(conditions: Sequence[_Condition]) -> list[bytes]:
    """Return instructions that allow a call if every condition holds, and refuse it otherwise."""
    block: list[bytes] = []
    for word in conditions:
        block.append(_instruction(_LOAD, 16 + 8 * word.argument + 4 * word.high))
        if word.mask != 0xFFFFFFFF:
            block.append(_instruction(_AND, word.mask))
        for index, value in enumerate(word.values):
            # A match skips the other values and the refusal after them.
            block.append(_instruction(_JUMP_EQUAL, value, jt=len(word.values) - index))
        block.append(_instruction(_RETURN, _ERRNO | errno.EPERM))
    return [*block, _instruction(_RETURN, _ALLOW)]


@functools.cache
def build_filter(pid: int, machine: str | None = None) -> bytes:
    """Return the filter for process ``pid``, the only one that it may signal, as BPF instructions of 8 bytes each.

    ``machine`` is "x86_64" or "aarch64", by default this machine; KeyError for any other.
    """
    name = machine or kernel.machine()
    code = [
        _instruction(_LOAD, 4),
        _instruction(_JUMP_EQUAL, kernel.ARCHITECTURES[name], jt=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, 0),
    ]
    for call, conditions in _conditions(pid).items():
        number = kernel.syscall_number(call, name)
        assert number is not None
        block = _compile_conditions(conditions)
        code += [_instruction(_JUMP_EQUAL, number, jf=len(block)), *block]
    for call in ABSENT:
        number = kernel.syscall_number(call, name)
        assert number is not None
        code += [_instruction(_JUMP_EQUAL, number, jf=1), _instruction(_RETURN, _ERRNO | errno.ENOSYS)]
    for call in ALLOWED:
        number = kernel.syscall_number(call, name)
        if number is not None:
            code += [_instruction(_JUMP_EQUAL, number, jf=1), _instruction(_RETURN, _ALLOW)]
    return b"".join([*code, _instruction(_RETURN, _ERRNO | errno.EPERM)])


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> None:
    """Install the filter in this process, irrevocably. Raises KernelError if the kernel refuses it."""
    code = build_filter(os.getpid())
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    mode_filter = 2
    kernel.prctl(kernel.PR_SET_SECCOMP, mode_filter, _FilterProgram(len(code) // 8, code))
