"""Attacks on the sandbox by hostile programs, as root and as an ordinary user.

A hostile program prints BREACH for each attempt that succeeds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from burnish.sandbox import run as run_module
from burnish.sandbox.layers import unavailable_reason
from burnish.sandbox.names import NAMESPACES
from burnish.sandbox.run import Limits, run

pytestmark = pytest.mark.usefixtures("nothing_is_left")
PACKAGE = Path(run_module.__file__).parents[1]
here_only = pytest.mark.skipif(unavailable_reason() is not None, reason=f"NO SANDBOX HERE: {unavailable_reason()}")
x86_only = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls by their x86-64 numbers")

ATTEMPT = """
import ctypes, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def refused(attempt, *arguments):
    try:
        result = attempt(*arguments)
    except (RuntimeError, ValueError, socket.gaierror):
        return
    except OSError as error:
        # Landlock refuses a move with EXDEV. Other failures prove nothing, except in namespaces, where outside files do
        # not exist.
        if error.errno in (1, 13, 18) or NAMESPACES and error.errno in (2, 30):
            return
        result = error
    print("BREACH", attempt, arguments, result)
def refused_call(*arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*map(ctypes.c_long, arguments))
    if result != -1 or ctypes.get_errno() != 1:
        print("BREACH", arguments, result, ctypes.get_errno())
"""

HOSTILE = {
    "network": """
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        refused(socket.socket, family, kind)
refused(socket.create_connection, ("127.0.0.1", 22), 1)
refused(socket.getaddrinfo, "localhost", 80)
refused(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
""",
    "reading outside": """
packages = os.path.dirname(os.__file__) + "/site-packages"
for path in ("/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/self/mem", "/proc/mounts", "/dev/zero",
             "/dev/kmsg", "/sys/kernel/notes", PACKAGE + "/errors.py", packages + "/README.txt",
             packages + "/pip/__init__.py"):
    if path in OUTSIDE:
        refused(open, path, "rb")
for path in ("/", "/tmp", "/proc", "/etc", "/root", "/home", PACKAGE, ".."):
    if path in OUTSIDE or path in ("/", ".."):
        refused(os.listdir, path)
""",
    "the parent's /proc": """
for name in ("environ", "mem", "maps", "cmdline", "status", "fd/0", "fd/1"):
    refused(open, f"/proc/{os.getppid()}/{name}", "rb")
for name in ("exe", "cwd", "root", "fd/0"):
    refused(os.readlink, f"/proc/{os.getppid()}/{name}")
refused(os.listdir, f"/proc/{os.getppid()}/fd")
""",
    "writing outside": """
open("mine", "w").write("x")
for path in ("/tmp/burnish-breach", "../burnish-breach", "/dev/shm/burnish-breach", "/var/tmp/burnish-breach"):
    if os.path.dirname(path) not in (*OUTSIDE, ".."):
        continue
    refused(open, path, "w")
    refused(os.mkdir, path)
    refused(os.rename, "mine", path)
    refused(os.link, "mine", path)
    refused(os.symlink, "mine", path)
refused(os.mkfifo, "fifo")
refused(os.mknod, "device")
refused(os.chmod, "mine", 0o4777)
refused(os.chown, "mine", 0, 0)
refused(os.truncate, "/etc/passwd", 0)
refused(os.utime, "/tmp")
refused(os.link, "/etc/passwd", "passwd")
""",
    "symbolic links out": """
for name, target in (("file", "/etc/passwd"), ("up", ".."), ("root", "/"), ("self", "/proc/self")):
    os.symlink(target, name)
refused(open, "file")
refused(open, "up/burnish-breach", "w")
refused(open, "root/etc/passwd")
refused(open, "self/environ")
refused(os.listdir, "up")
""",
    "processes": """
refused(os.fork)
refused(os.forkpty)
refused(os.posix_spawn, "/bin/true", ["true"], {})
refused(os.execv, "/bin/true", ["true"])
refused(os.execv, sys.executable, [sys.executable, "-c", "print('BREACH')"])
refused(subprocess.run, ["true"])
assert os.system("echo BREACH") != 0
refused(os.setsid)
refused(os.setpgid, 0, 0)
""",
    "threads that would outlive it": """
import threading, time
thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
refused(thread.start)
""",
    "signals": """
import fcntl, resource, signal
for pid in (os.getppid(), -1, 0, 1, -os.getppid()):
    for number in (0, signal.SIGKILL, signal.SIGSTOP):
        refused(os.kill, pid, number)
refused(os.killpg, 0, signal.SIGKILL)
refused(signal.pidfd_send_signal, 0, signal.SIGKILL)
refused(os.pidfd_open, os.getppid())
refused(fcntl.fcntl, 1, fcntl.F_SETOWN, os.getppid())
refused(fcntl.fcntl, 1, fcntl.F_SETSIG, signal.SIGKILL)
refused(resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE, (1, 1))
refused(os.setpriority, os.PRIO_PROCESS, os.getppid(), 19)
""",
    "its own limits": """
import resource
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    refused(resource.setrlimit, which, resource.getrlimit(which))
refused(os.setuid, 0)
refused(os.setgroups, [])
refused(os.sched_setaffinity, 0, {0})
try:
    for _ in range(100):
        os.dup(1)
    print("BREACH: 100 descriptors")
except OSError:
    pass
""",
    "a console": """
import fcntl
refused(fcntl.ioctl, 1, 0x5412, b"x")
refused(os.open, "/dev/tty", os.O_RDWR)
""",
}
ON_X86 = {
    "ptrace through ctypes": """
for request in (0, 16, 0x4206):
    refused_call(101, request, os.getppid(), 0, 0)
refused_call(310, os.getppid(), 0, 0, 0, 0, 0)
refused_call(311, os.getppid(), 0, 0, 0, 0, 0)
""",
    "system calls by number": """
# vfork; clone with SIGCHLD and with CLONE_THREAD; execveat; mount, unshare, setns, chroot, pivot_root; bpf,
# perf_event_open, userfaultfd, memfd_create, io_uring_setup, keyctl, pidfd_getfd, process_madvise, landlock_add_rule,
# prctl, seccomp, personality, sendmsg, connect, shmget, msgget, inotify_init, a number that no kernel has.
for arguments in ((58,), (56, 17, 0, 0, 0, 0), (56, 0x10F00, 0, 0, 0, 0), (322, -1, 0, 0, 0, 0), (165,), (272, 0x10000000),
                  (308, 0, 0), (161, 0), (155,), (321,), (298,), (323,), (319, 0, 0), (425, 1, 0), (250,), (438, 0, 0, 0),
                  (440,), (445,), (157, 4, 1), (317, 0), (135, 8), (46, 0, 0), (42, 0, 0), (29, 0, 4096, 0o1600), (68, 0),
                  (253,), (9999,)):
    refused_call(*arguments)
# The x32 numbers of getpid, socket and fork.
for number in (39, 41, 57):
    refused_call(0x40000000 + number)
# clone3 fails with ENOSYS, so that the C library uses clone instead.
ctypes.set_errno(0)
assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38
""",
}


def hostile(body: str, layer: str = NAMESPACES) -> str:
    """Return a program that runs the body's attacks and prints BREACH for each that succeeds."""
    packages = f"{os.path.dirname(os.__file__)}/site-packages"
    outside = [
        path
        for path in (
            "/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/self/mem", "/proc/mounts", "/dev/zero", "/dev/kmsg",
            "/sys/kernel/notes", f"{PACKAGE}/errors.py", f"{packages}/README.txt", f"{packages}/pip/__init__.py",
            "/tmp", "/proc", "/etc", "/root", "/home", "/dev/shm", "/var/tmp", str(PACKAGE),
        )
        if os.path.exists(path)
    ]  # fmt: skip
    head = f"PACKAGE = {str(PACKAGE)!r}\nOUTSIDE = {outside!r}\nNAMESPACES = {layer == NAMESPACES}\n"
    return f"{head}{ATTEMPT}{body}\nprint('held')\n"


@here_only
class TestHostile:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", HOSTILE)
    def test_attempts_fail(self, name: str, layer: str) -> None:
        verdict = run(hostile(HOSTILE[name], layer), layer=layer)
        assert (verdict.stdout, verdict.stderr, verdict.status) == ("held\n", "", "ok")

    @pytest.mark.slow
    @x86_only
    @pytest.mark.parametrize("name", ON_X86)
    def test_raw_system_calls_fail(self, name: str, layer: str) -> None:
        verdict = run(hostile(ON_X86[name], layer), layer=layer)
        assert (verdict.stdout, verdict.stderr, verdict.status) == ("held\n", "", "ok")

    @x86_only
    def test_a_32_bit_system_call_kills(self) -> None:
        # mov eax, 20 (getpid of i386); int 0x80; ret
        code = r"b'\xb8\x14\x00\x00\x00\xcd\x80\xc3'"
        verdict = run(
            "import ctypes, mmap\n"
            "page = mmap.mmap(-1, 4096, prot=7)\n"
            f"page.write({code})\n"
            "address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
            "print('BREACH', ctypes.CFUNCTYPE(ctypes.c_long)(address)())\n"
        )
        assert (verdict.status, verdict.reason, verdict.stdout) == ("killed", "by SIGSYS", "")

    def test_variables_and_descriptors_are_not_inherited(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("BURNISH_SECRET", "hunter2")
        (tmp_path / "secret").write_text("hunter2", encoding="utf-8")
        with open(tmp_path / "secret", "rb") as secret:
            os.set_inheritable(secret.fileno(), True)
            verdict = run(
                "import os, sys\n"
                "print(sorted(os.environ), sys.stdin.read(), os.listdir('.'))\n"
                "for number in range(3, 200):\n"
                "    try:\n        print('BREACH', number, os.fstat(number))\n"
                "    except OSError:\n        pass\n"
                "print(os.path.basename(os.getcwd()).startswith('burnish-sandbox-'))\n"
            )
        assert verdict.status == "ok", verdict
        names = "['HOME', 'LANG', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED', 'TMPDIR', 'TZ']"
        assert verdict.stdout == f"{names}  []\nTrue\n"

    def test_installed_packages_and_burnish_cannot_be_imported(self) -> None:
        verdict = run(
            "import sys\n"
            "for name in ('burnish', 'burnish.sandbox.linux.kernel', 'numpy', 'pip', 'torch'):\n"
            "    try:\n        __import__(name); print('BREACH', name)\n"
            "    except ImportError:\n        pass\n"
            "print([m for m in sys.modules if 'burnish' in m])"
        )
        assert (verdict.status, verdict.stdout) == ("ok", "[]\n")


def python_for_everyone() -> str | None:
    """Return a Python of at least 3.11 that an ordinary user can start, or None."""
    for name in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            done = subprocess.run(
                [name, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"],
                user=65534, group=65534, extra_groups=[], env={}, cwd="/", stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError:
            continue
        if done.returncode == 0:
            return name
    return None


@pytest.mark.slow
@here_only
@pytest.mark.skipif(os.geteuid() != 0, reason="every test here runs as an ordinary user already")
def test_hostile_programs_fail_as_an_ordinary_user_too(copy_of_the_package: Callable[[Path], Path]) -> None:
    python = python_for_everyone()
    if python is None:
        pytest.skip("NOT TESTED AS AN ORDINARY USER: no Python 3.11 here that one could start")
    programs = {name: hostile(body) for name, body in (HOSTILE | ON_X86).items()}
    programs["locked folder"] = "import os\nos.makedirs('a/b'); os.mkdir('a/b/c', 0)\nprint('held')"
    code = (
        "import json, os, sys\nfrom burnish.sandbox.run import run\nassert os.geteuid() == 65534\n"
        "print(json.dumps({n: [v.status, v.reason, v.stdout, v.stderr] for n, p in json.load(sys.stdin).items()"
        " for v in [run(p)]}))"
    )
    folder = tempfile.mkdtemp(dir="/tmp")
    try:
        copy_of_the_package(Path(folder))
        own = os.path.join(folder, "own")
        os.mkdir(own)
        os.chmod(folder, 0o755)
        os.chmod(own, 0o777)
        done = subprocess.run(
            [python, "-B", "-c", code], user=65534, group=65534, extra_groups=[], cwd=folder, input=json.dumps(programs),
            env={"PYTHONPATH": folder, "TMPDIR": own}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        verdicts = json.loads(done.stdout)
        # Depends on whether the folder is checked before the program ends.
        status, reason, *_ = verdicts.pop("locked folder")
        assert status == "ok" or (status == "killed" and "cannot be listed" in reason)
        assert verdicts == {name: ["ok", "", "held\n", ""] for name in verdicts}
        assert len(verdicts) == len(programs) - 1
        assert os.listdir(own) == []
    finally:
        shutil.rmtree(folder)


@here_only
@pytest.mark.slow
def test_a_thousand_hostile_programs_leave_nothing(layer: str) -> None:
    bodies = [*HOSTILE.values(), "while True: pass", "x = bytearray(1 << 30)", "while True: print('x' * 9999)"]

    def one(number: int) -> str:
        body = hostile(bodies[number % len(bodies)], layer)
        return run(body, limits=Limits(seconds=0.5, memory=128), layer=layer).status

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(one, range(1000)))
    # On a busy machine, a slow import may turn any result into a timeout.
    assert "refused" not in statuses and {"ok", "timeout", "memory", "killed"} == set(statuses)
