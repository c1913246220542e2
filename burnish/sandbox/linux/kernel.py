"""Linux system calls by number, through ctypes.

The numbers are from the kernel's tables for x86_64 (``arch/x86/entry/syscalls/syscall_64.tbl``) and aarch64
(``include/uapi/asm-generic/unistd.h``). A call whose number is None does not exist on that machine.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> AUDIT_ARCH constant. A seccomp filter must compare it before it relies on a number."""

_TABLE: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "ioctl": (16, 29), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "pause": (34, None),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "socket": (41, 198), "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210),
    "getsockname": (51, 204), "getpeername": (52, 205), "socketpair": (53, 199),
    "exit": (60, 93), "wait4": (61, 260), "kill": (62, 129), "uname": (63, 160), "fcntl": (72, 25),
    "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "getcwd": (79, 17),
    "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "creat": (85, None), "unlink": (87, None), "symlink": (88, None), "readlink": (89, None), "umask": (95, 166),
    "clone": (56, 220), "pivot_root": (155, 41), "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97),
    "mount_setattr": (442, 442),
    "gettimeofday": (96, 169), "getrusage": (98, 165), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "getpgrp": (111, None), "getgroups": (115, 158), "capset": (126, 91), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "fstatfs": (138, 44),
    "prctl": (157, 167), "gettid": (186, 178),
    "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, None), "epoll_ctl": (233, 21),
    "tgkill": (234, 131), "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "symlinkat": (266, 36), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "epoll_pwait": (281, 22), "fallocate": (285, 47), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59), "preadv": (295, 69), "pwritev": (296, 70),
    "prlimit64": (302, 261), "renameat2": (316, 276), "getrandom": (318, 278),
    "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293), "clone3": (435, 435),
    "close_range": (436, 436), "openat2": (437, 437), "faccessat2": (439, 439),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip


class KernelError(OSError):
    """A system call failed, with the kernel's ``errno`` and the call's name before its text."""


def machine() -> str:
    """Return the machine's name, such as "x86_64"."""
    return os.uname().machine


def syscall_number(name: str, on_machine: str | None = None) -> int | None:
    """Return the number of a system call, or None if the machine (by default this one) does not have it.

    Raises KeyError for an unknown machine or name.
    """
    return _TABLE[name][{"x86_64": 0, "aarch64": 1}[on_machine or machine()]]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(name: str, *arguments: int | bytes | ctypes.Array[Any] | ctypes.Structure | None) -> int:
    """Make a system call by name. Structures and byte strings are passed by address.

    Raises KernelError if the call fails or the machine does not have it.
    """
    number = syscall_number(name)
    if number is None:
        raise KernelError(38, f"{name}: no such system call on {machine()}")
    result = int(_libc.syscall(ctypes.c_long(number), *map(_argument, arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise KernelError(code, f"{name}: {os.strerror(code)}")
    return result


def _argument(value: int | bytes | ctypes.Array[Any] | ctypes.Structure | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, bytes):
        return ctypes.c_char_p(value)
    return ctypes.byref(value)


def prctl(option: int, value: int | ctypes.Structure = 0, extra: int | ctypes.Structure = 0) -> None:
    """Call ``prctl(2)``. Raises KernelError."""
    syscall("prctl", option, value, extra, 0, 0)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Drop every capability irrevocably. Raises KernelError."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except KernelError:  # past the kernel's last capability, or there is none to drop
            break
    # Version 3: two words each of effective, permitted and inheritable, all zero.
    syscall("capset", _CapabilityHeader(0x20080522, 0), (ctypes.c_uint32 * 6)())
