"""The sandbox under attack: hostile programs fail, limits end what does not end, and nothing is left behind.

A hostile program tries something and prints BREACH where it succeeds. After each test there is no process, no zombie, no
open descriptor and no file that was not there before.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from burnish.errors import InputError
from burnish.sandbox import folder as folder_module
from burnish.sandbox import run as run_module
from burnish.sandbox.folder import overfull, own_folder
from burnish.sandbox.run import Limits, Verdict, run, unavailable

PACKAGE = Path(run_module.__file__).parents[1]
here_only = pytest.mark.skipif(unavailable() is not None, reason=f"NO SANDBOX HERE: {unavailable()}")
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
        # EXDEV is how Landlock refuses a move. A failure for another reason, such as no such file, proves nothing.
        if error.errno in (1, 13, 18):
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
    if os.path.exists(path):
        refused(open, path, "rb")
for path in ("/", "/tmp", "/proc", "/etc", "/root", "/home", PACKAGE, ".."):
    if os.path.exists(path):
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
    if not os.path.exists(os.path.dirname(path)):
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
# clone3 is said not to exist, so that the C library takes clone instead.
ctypes.set_errno(0)
assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38
""",
}


def hostile(body: str) -> str:
    return f"PACKAGE = {str(PACKAGE)!r}\n{ATTEMPT}{body}\nprint('held')\n"


def descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def children(of: int) -> set[int]:
    """Processes, zombies among them, whose parent is the given one."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == of:
                    found.add(int(name))
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    before = children(os.getpid()), descriptors()
    yield
    assert (children(os.getpid()), descriptors()) == before
    assert os.listdir(own) == []
    assert not [path for path in ("/tmp", "/dev/shm", "/var/tmp") if os.path.lexists(f"{path}/burnish-breach")]


QUICK = Limits(seconds=0.3)


@here_only
class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_attempts_fail(self, name: str) -> None:
        verdict = run(hostile(HOSTILE[name]))
        assert (verdict.stdout, verdict.stderr, verdict.status) == ("held\n", "", "ok")

    @x86_only
    @pytest.mark.parametrize("name", ON_X86)
    def test_raw_system_calls_fail(self, name: str) -> None:
        verdict = run(hostile(ON_X86[name]))
        assert (verdict.stdout, verdict.stderr, verdict.status) == ("held\n", "", "ok")

    @x86_only
    def test_a_32_bit_system_call_kills(self) -> None:
        # mov eax, 20 (getpid of i386); int 0x80; ret
        code = r"b'\xb8\x14\x00\x00\x00\xcd\x80\xc3'"
        verdict = run(
            "import ctypes, mmap\n"
            "page = mmap.mmap(-1, 4096, prot=7)\n"
            f"page.write({code})\n"
            "place = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
            "print('BREACH', ctypes.CFUNCTYPE(ctypes.c_long)(place)())\n"
        )
        assert (verdict.status, verdict.reason, verdict.stdout) == ("killed", "by SIGSYS", "")

    def test_no_variable_and_no_descriptor_comes_in(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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

    def test_installed_packages_and_burnish_are_not_there(self) -> None:
        verdict = run(
            "import sys\n"
            "for name in ('burnish', 'burnish.sandbox.kernel', 'numpy', 'pip', 'torch'):\n"
            "    try:\n        __import__(name); print('BREACH', name)\n"
            "    except ImportError:\n        pass\n"
            "print([m for m in sys.modules if 'burnish' in m])"
        )
        assert (verdict.status, verdict.stdout) == ("ok", "[]\n")


@here_only
class TestLimits:
    @pytest.mark.parametrize(
        "source",
        [
            "while True: pass",
            "import signal\nfor n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
            "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
            "import os, time\nos.close(1); os.close(2); time.sleep(60)",
            "import time\ntry:\n    time.sleep(60)\nfinally:\n    time.sleep(60)",
            "import atexit, time\natexit.register(time.sleep, 60)",
        ],
    )
    def test_what_does_not_end_is_ended(self, source: str) -> None:
        verdict = run(source, limits=QUICK)
        assert (verdict.status, verdict.reason) == ("timeout", "ran longer than 0.3 s")

    @pytest.mark.parametrize(
        "source", ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))", "x = 'a' * (1 << 40)"]
    )
    def test_memory_runs_out(self, source: str) -> None:
        verdict = run(source, limits=Limits(memory=128))
        assert (verdict.status, verdict.stderr) == ("memory", "MemoryError: over the sandbox's limit\n")

    def test_memory_that_is_handled_is_no_failure_and_is_measured(self) -> None:
        source = (
            "import time\ntry: bytearray(1 << 30)\nexcept MemoryError: print('caught')\n"
            "x = bytes(b'1') * (60 << 20)\ntime.sleep(0.2)"
        )
        verdict = run(source)
        assert (verdict.status, verdict.stdout) == ("ok", "caught\n")
        assert verdict.memory is not None and 60 < verdict.memory < 128

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_endless_output_is_cut(self, stream: str) -> None:
        verdict = run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", limits=Limits(output=5000))
        assert (verdict.status, verdict.reason) == ("killed", f"wrote more than 5000 bytes on {stream}")
        assert getattr(verdict, stream) == "x" * 5000

    def test_output_of_just_the_limit_is_whole(self) -> None:
        assert run("print('x' * 4999)", limits=Limits(output=5000)).stdout == "x" * 4999 + "\n"
        assert run("print('x' * 5000)", limits=Limits(output=5000)).status == "killed"

    def test_a_file_has_a_largest_size(self) -> None:
        verdict = run("with open('x', 'wb') as file: file.write(bytes((8 << 20) + 1))")
        assert verdict.status == "error"
        assert "[Errno 27] File too large" in verdict.stderr

    def test_files_altogether_have_a_largest_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_module, "MOST_BYTES", 2 << 20)
        verdict = run("import time\nfor n in range(9): open(str(n), 'wb').write(bytes(1 << 20))\ntime.sleep(60)")
        assert (verdict.status, verdict.reason) == ("killed", "wrote more than 2 MB of files")

    @pytest.mark.parametrize(
        "source",
        [
            "import os, time\nfor n in range(300): os.mkdir(str(n))\ntime.sleep(60)",
            "import os, time\nfor n in range(400):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\ntime.sleep(60)",
        ],
    )
    def test_many_and_deep_folders_end_it_and_go_away(self, source: str) -> None:
        assert run(source).status == "killed"

    def test_locked_folders_go_away(self) -> None:
        verdict = run("import os\nos.makedirs('a/b/c'); os.mkdir('a/b/locked', 0)\nos.symlink('/', 'a/root')")
        assert verdict.status == "ok"

    def test_limits_with_which_nothing_runs_are_bad_input(self) -> None:
        for wrong in ({"seconds": 0}, {"seconds": float("nan")}, {"memory": 10}, {"output": 0}):
            with pytest.raises(InputError, match="sandbox: "):
                Limits(**wrong)


@here_only
class TestVerdict:
    def test_ordinary_programs_work(self) -> None:
        verdict = run(
            "import asyncio, collections, dataclasses, datetime, decimal, hashlib, heapq, itertools, json, math, random\n"
            "import re, sqlite3, tempfile, time, unittest\n"
            "async def main():\n    await asyncio.sleep(0)\n    return 6\n"
            "@dataclasses.dataclass\nclass Point:\n    x: int\n"
            "with tempfile.NamedTemporaryFile('w+') as file:\n    file.write('7'); file.seek(0); seven = file.read()\n"
            "print(asyncio.run(main()), seven, Point(3), hashlib.sha256(b'').hexdigest()[:4], '我爱你', __name__)\n"
            "assert random.random() != random.random() and time.time() > 0 and datetime.datetime.now()\n"
        )
        assert (verdict.stdout, verdict.stderr, verdict.status) == ("6 7 Point(x=3) e3b0 我爱你 __main__\n", "", "ok")
        assert verdict.reason == "" and verdict.seconds > 0

    def test_an_exception_shows_the_programs_lines_only(self) -> None:
        verdict = run("def f():\n    return 1 / 0\nf()\n", name="mine.py")
        assert (verdict.status, verdict.reason) == ("error", "exit status 1")
        assert verdict.stderr.startswith(
            'Traceback (most recent call last):\n  File "mine.py", line 3, in <module>\n    f()'
        )
        assert verdict.stderr.endswith("ZeroDivisionError: division by zero\n")

    @pytest.mark.parametrize(
        ("source", "status", "reason"),
        [
            ("import sys; sys.exit(3)", "error", "exit status 3"),
            ("raise KeyboardInterrupt", "error", "exit status 1"),
            ("import os; os._exit(0)", "ok", ""),
            ("import os; os.abort()", "killed", "by SIGABRT"),
            ("import ctypes; ctypes.string_at(0)", "killed", "by SIGSEGV"),
            ("import os; os.kill(os.getpid(), 9)", "killed", "by SIGKILL"),
            ("this is no Python", "error", "exit status 1"),
            ("x = '\0'", "error", "exit status 1"),
            ("x = '\ud800'", "error", "exit status 1"),
            ("", "ok", ""),
        ],
    )
    def test_status(self, source: str, status: str, reason: str) -> None:
        verdict = run(source)
        assert (verdict.status, verdict.reason) == (status, reason)

    def test_bytes_that_are_no_text_are_escaped(self) -> None:
        assert run(r"import os; os.write(1, b'a\xff')").stdout == r"a\xff"

    def test_sets_have_the_same_order_in_every_run(self) -> None:
        source = "print({str(n) for n in range(50)})"
        assert run(source).stdout == run(source).stdout

    def test_several_threads_run_programs_at_once(self) -> None:
        found: dict[int, Verdict] = {}

        def one(number: int) -> None:
            found[number] = run(f"print({number})")

        threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {number: verdict.stdout for number, verdict in found.items()} == {n: f"{n}\n" for n in range(6)}

    def test_ctrl_c_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(run_module, "overfull", stop)
        with pytest.raises(KeyboardInterrupt):
            run("while True: pass")


def copy_of_the_package(place: Path) -> Path:
    """burnish without what the sandbox does not need, to be changed or to be read by another user."""
    (place / "burnish").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(PACKAGE / name, place / "burnish")
    shutil.copytree(PACKAGE / "sandbox", place / "burnish" / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    return place / "burnish" / "sandbox"


@here_only
class TestWalls:
    @pytest.mark.parametrize(
        ("file", "wall", "open_to"),
        [
            ("walls.py", "    landlock.restrict(rules)\n", "reading /etc/passwd succeeded"),
            ("walls.py", "    seccomp.install()\n", "opening a socket succeeded"),
            ("seccomp.py", '    "sendto", ', None),
        ],
    )
    def test_where_a_wall_is_missing_nothing_runs(
        self, file: str, wall: str, open_to: str | None, tmp_path: Path
    ) -> None:
        (tmp_path / "copy").mkdir()
        changed = copy_of_the_package(tmp_path / "copy") / file
        text = changed.read_text(encoding="utf-8")
        assert wall in text
        # The third lets sockets through although the filter stands.
        changed.write_text(text.replace(wall, "" if open_to else wall + '"socket", '), encoding="utf-8")
        code = "import burnish.sandbox.run as r; v = r.run('print(1)'); print(v.status, v.reason, repr(v.stdout))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "copy")}, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.startswith("refused the walls do not hold: ")
        assert (open_to or "opening a socket succeeded") in done.stdout
        assert done.stdout.endswith("''\n")

    def test_without_walls_every_attack_succeeds(self) -> None:
        # The control: attacks that fail anywhere would prove nothing.
        code = "from burnish.sandbox.walls import ATTACKS, holes; assert holes() == [f'{n} succeeded' for n in ATTACKS]"
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE.parent)}, check=True)

    def test_other_systems_get_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from burnish.sandbox import kernel, landlock

        monkeypatch.setattr(landlock, "version", lambda: 0)
        assert "Landlock (Linux 5.13" in run("print(1)").reason
        monkeypatch.setattr(kernel, "machine", lambda: "riscv64")
        assert "this is riscv64" in run("print(1)").reason
        monkeypatch.setattr(sys, "platform", "darwin")
        verdict = run("print(1)")
        assert (verdict.status, verdict.stdout) == ("refused", "")
        assert verdict.reason.startswith("the sandbox needs Linux") and "\n" not in verdict.reason

    def test_a_program_does_not_outlive_a_killed_parent(self, tmp_path: Path) -> None:
        code = "from burnish.sandbox.run import *; run('while True: pass', limits=Limits(seconds=60))"
        environment = {"PYTHONPATH": str(PACKAGE.parent), "TMPDIR": str(tmp_path)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
            inside: set[int] = set()
            while not inside and parent.poll() is None:
                time.sleep(0.02)
                inside = children(parent.pid)
            # Only behind the filter is it sure to have asked for the signal that comes with its parent's death.
            while "Seccomp:\t2" not in Path(f"/proc/{min(inside)}/status").read_text(encoding="utf-8"):
                time.sleep(0.02)
            parent.send_signal(signal.SIGKILL)
        for _ in range(500):
            if not os.path.exists(f"/proc/{min(inside)}"):
                break
            time.sleep(0.02)
        else:
            pytest.fail("it outlives its parent")


def python_for_everyone() -> str | None:
    """A Python of 3.11 or later that an ordinary user can start, when this process is root's."""
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


@here_only
@pytest.mark.skipif(os.geteuid() != 0, reason="every test here runs as an ordinary user already")
def test_hostile_programs_fail_as_an_ordinary_user_too() -> None:
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
    place = tempfile.mkdtemp(dir="/tmp")
    try:
        copy_of_the_package(Path(place))
        own = os.path.join(place, "own")
        os.mkdir(own)
        os.chmod(place, 0o755)
        os.chmod(own, 0o777)
        done = subprocess.run(
            [python, "-B", "-c", code], user=65534, group=65534, extra_groups=[], cwd=place, input=json.dumps(programs),
            env={"PYTHONPATH": place, "TMPDIR": own}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        verdicts = json.loads(done.stdout)
        # Whoever watches comes by while the folder is there, or the program has ended before.
        status, reason, *_ = verdicts.pop("locked folder")
        assert status == "ok" or (status == "killed" and "cannot be looked into" in reason)
        assert verdicts == {name: ["ok", "", "held\n", ""] for name in verdicts}
        assert len(verdicts) == len(programs) - 1
        assert os.listdir(own) == []
    finally:
        shutil.rmtree(place)


@here_only
@pytest.mark.slow
def test_a_thousand_hostile_programs_leave_nothing() -> None:
    bodies = [*HOSTILE.values(), "while True: pass", "x = bytearray(1 << 30)", "while True: print('x' * 9999)"]

    def one(number: int) -> str:
        return run(hostile(bodies[number % len(bodies)]), limits=Limits(seconds=0.5, memory=128)).status

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(one, range(1000)))
    # Where the machine is busy, a slow import may make an honest end a timeout.
    assert "refused" not in statuses and {"ok", "timeout", "memory", "killed"} == set(statuses)


def evaluate(code: bytes, machine: int, call: int, arguments: tuple[int, ...]) -> int:
    """What a filter returns: classic BPF as in linux/filter.h, those instructions that the filter uses."""
    data = struct.pack(
        "=iIQ6Q", call, machine, 0, *(value % (1 << 64) for value in arguments + (0,) * (6 - len(arguments)))
    )
    place, accumulator = 0, 0
    while True:
        operation, yes, no, operand = struct.unpack_from("=HBBI", code, 8 * place)
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x15:
            place += yes if accumulator == operand else no
        else:
            assert operation == 0x06
            return operand


class TestFilter:
    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    def test_lets_through_what_it_names(self, machine: str) -> None:
        from burnish.sandbox import kernel, seccomp

        allow, refuse, absent = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
        code = seccomp.program(42, machine)
        assert len(code) // 8 < 4096

        def answer(name: str, *arguments: int) -> int:
            number = kernel.number(name, machine)
            assert number is not None
            return evaluate(code, kernel.ARCHITECTURES[machine], number, arguments)

        assert {answer(n) for n in seccomp.ALLOWED if kernel.number(n, machine) is not None} == {allow}
        assert {answer(name) for name in seccomp.ABSENT} == {absent}
        assert answer("socket", 2, 1, 0) == answer("prctl", 4, 1) == answer("landlock_add_rule") == refuse
        assert (answer("kill", 42, 9), answer("kill", 1, 9), answer("kill", -1, 9)) == (allow, refuse, refuse)
        assert (answer("prlimit64", 0, 7, 0), answer("prlimit64", 0, 7, 1), answer("prlimit64", 0, 7, 1 << 32)) == (
            allow, refuse, refuse,
        )  # fmt: skip
        # F_GETFL, F_SETOWN; a stream pair with SOCK_CLOEXEC, a datagram pair.
        assert (answer("fcntl", 1, 3), answer("fcntl", 1, 8)) == (allow, refuse)
        assert (answer("socketpair", 1, 0x80001, 0), answer("socketpair", 1, 2, 0)) == (allow, refuse)
        other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
        assert evaluate(code, kernel.ARCHITECTURES[other], 0, ()) == 0x80000000


class TestFolder:
    def test_what_is_outside_stays(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").write_text("x", encoding="utf-8")
        with own_folder() as folder:
            os.makedirs(f"{folder}/a/b")
            os.symlink(tmp_path / "kept", f"{folder}/a/b/link")
            os.symlink(tmp_path / "kept", f"{folder}/link")
            assert overfull(folder) is None
        assert not os.path.exists(folder)
        assert (tmp_path / "kept" / "file").read_text(encoding="utf-8") == "x"
