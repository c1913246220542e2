"""Attacks on the layer wasm, its limits and its verdicts.

Compiling its Python takes minutes, once per machine.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from burnish.sandbox.answers import InputTest, run_tests
from burnish.sandbox.verdict import Limits, Verdict
from burnish.sandbox.wasm import files as wasm_files
from burnish.sandbox.wasm import layer as wasm

MISSING = wasm_files.missing_packages()
here_only = pytest.mark.skipif(MISSING is not None, reason=f"NO WASM HERE: {MISSING}")
pytestmark = [pytest.mark.xdist_group("wasm"), pytest.mark.slow]  # one worker compiles, once
QUICK = Limits(seconds=0.5)
PACKAGE = Path(wasm.__file__).parents[2]


def run(source: str, limits: Limits | None = None) -> Verdict:
    from burnish.sandbox.run import run

    return run(source, limits=limits or Limits(), layer="wasm")


ATTEMPT = """
import errno, os, sys
REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOTCAPABLE, errno.ENOTSUP, errno.EBADF}
def refused(attempt, *arguments):
    try:
        result = attempt(*arguments)
    except (AttributeError, ImportError):
        return
    except OSError as error:
        # Any other failure proves nothing.
        if error.errno in REFUSALS:
            return
        result = error
    print("BREACH", attempt, arguments, result)
def call(name):
    return lambda *arguments: getattr(os, name)(*arguments)
"""

HOSTILE = {
    "network": """
import socket
for family in (1, 2, 10):
    for kind in (1, 2, 3):
        refused(socket.socket, family, kind)
refused(lambda: socket.create_connection(("127.0.0.1", 22), 1))
try:
    print("BREACH", socket.socket(fileno=0).recv(1))
except OSError as error:
    assert error.errno == errno.ENOTSOCK
try:
    import urllib.request
    urllib.request.urlopen("http://127.0.0.1/")
    print("BREACH")
except (OSError, AttributeError):  # there is no resolver either
    pass
""",
    "reading outside": """
for path in ("/etc/passwd", "/proc/self/environ", "/dev/zero", PACKAGE + "/errors.py", "../answers/../stdin", "/stdin",
             "../../etc/passwd", "../" * 30 + "etc/passwd",
             "/program/../../etc/passwd", "/usr/local/lib/../../../etc/passwd",
             "/answers/../stdin", "C:\\\\Windows\\\\win.ini", "\\\\\\\\localhost\\\\c$"):
    refused(open, path, "rb")
for path in ("/", "..", "/usr", "/usr/local", "/tmp", "/etc", PACKAGE):
    refused(os.listdir, path)
    refused(os.stat, path) if path not in ("/", "..") else None
assert os.listdir("/usr/local/lib") == [f"python{sys.version_info.major}{sys.version_info.minor}.zip"]
""",
    "writing outside": """
open("mine", "w").write("x")
for path in ("/tmp/burnish-breach", "../burnish-breach", "/burnish-breach", "/usr/local/lib/burnish-breach",
             PACKAGE + "/breach"):
    refused(open, path, "w")
    refused(os.mkdir, path)
    refused(os.rename, "mine", path)
    refused(os.link, "mine", path)
    refused(os.symlink, "mine", path)
library = "/usr/local/lib/" + os.listdir("/usr/local/lib")[0]
refused(open, library, "r+b")
refused(open, library, "ab")
refused(open, library, "wb")
refused(os.truncate, library, 0)
refused(os.unlink, library)
refused(os.rename, library, "library")
refused(os.link, library, "library")
refused(os.utime, library)
refused(call("mkfifo"), "fifo")
refused(call("mknod"), "device")
""",
    "symbolic links": """
for name, target in (("file", "/etc/passwd"), ("up", ".."), ("root", "/"), ("own", "mine")):
    refused(os.symlink, target, name)
    refused(open, name)
assert os.listdir(".") == []
""",
    "processes": """
import subprocess
for name, *arguments in (("fork",), ("forkpty",), ("posix_spawn", "/bin/true", ["true"], {}),
                         ("execv", "/bin/true", ["true"]),
                         ("system", "true"), ("popen", "true"), ("setsid",), ("startfile", "x")):
    refused(call(name), *arguments)
refused(subprocess.run, ["true"])
""",
    "a bomb of forks": """
try:
    while True:
        os.fork()
except AttributeError:
    pass
""",
    "threads": """
import threading, _thread
for start in (threading.Thread(target=print).start, lambda: _thread.start_new_thread(print, ())):
    try:
        start()
        print("BREACH")
    except RuntimeError:
        pass
""",
    "signals": """
for pid in (os.getppid() if hasattr(os, "getppid") else 1, -1, 0, 1):
    refused(call("kill"), pid, 9)
refused(call("killpg"), 0, 9)
""",
    "machine code": """
import ctypes
for attempt in (lambda: ctypes.CDLL(None), lambda: ctypes.string_at(0), lambda: ctypes.CDLL("libc.so.6"),
                lambda: __import__("mmap").mmap(-1, 4096, prot=7)):
    try:
        print("BREACH", attempt())
    except (OSError, AttributeError):
        pass
""",
    "the host's call": """
for name in ("host", "host.tools", "numpy", "pandas", "burnish", "wasmtime", "pip"):
    refused(__import__, name)
""",
    "its own folders": """
REFUSALS |= {errno.EINVAL, errno.EBUSY}
for path in (".", "/usr/local/lib", "/answers"):
    refused(os.rmdir, path)
    refused(os.rename, path, "moved")
""",
}


@here_only
class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_attempts_fail(self, name: str) -> None:
        verdict = run(f"PACKAGE = {str(PACKAGE)!r}\n{ATTEMPT}{HOSTILE[name]}\nprint('held')\n")
        assert (verdict.stdout, verdict.stderr, verdict.status) == ("held\n", "", "ok")

    @pytest.mark.parametrize(
        "source",
        [
            "while True: pass",
            "import time\ntime.sleep(60)",
            "import atexit, time\natexit.register(time.sleep, 60)",
            "x = 9 ** 9 ** 9",
            "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
            "import os, time\nos.close(1); os.close(2); time.sleep(60)",
            "try:\n    while True: pass\nfinally:\n    while True: pass",
        ],
    )
    def test_endless_programs_are_ended(self, source: str) -> None:
        began = time.monotonic()
        verdict = run(source, QUICK)
        assert (verdict.status, verdict.reason) == ("timeout", "ran longer than 0.5 s")
        assert time.monotonic() - began < 20
        # Whether or not the worker ended too:
        assert run("print(7)").stdout == "7\n"

    @pytest.mark.parametrize("source", ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
    def test_memory_runs_out(self, source: str) -> None:
        verdict = run(source, Limits(memory=100))
        assert (verdict.status, verdict.stderr) == ("memory", "MemoryError: over the sandbox's limit\n")
        assert verdict.memory is not None and verdict.memory <= 100

    def test_an_endless_loop_is_ended_and_its_worker_continues(self) -> None:
        assert run("while True: pass", QUICK).status == "timeout"
        assert run("print(7)").stdout == "7\n"

    def test_the_least_memory_is_enough_and_usage_is_measured(self) -> None:
        verdict = run("import decimal, json, re\nx = bytearray(10 << 20)\nprint(1)", Limits(memory=64))
        assert (verdict.status, verdict.stdout) == ("ok", "1\n")
        assert verdict.memory is not None and 40 <= verdict.memory <= 64

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_endless_output_is_cut(self, stream: str) -> None:
        verdict = run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", Limits(output=5000))
        assert (verdict.status, verdict.reason) == ("killed", f"wrote more than 5000 bytes on {stream}")
        assert getattr(verdict, stream) == "x" * 5000

    def test_a_program_reads_standard_input_and_prints(self) -> None:
        echo = "while True:\n    try:\n        print(input())\n    except EOFError:\n        break\n"
        programs = (
            echo,
            "import sys\nfor line in sys.stdin: print(line.strip())",
            "import sys\nprint(sys.stdin.read())",
            "print(open(0).read())",
            "import os\nassert os.listdir() == []\nprint(os.read(0, 99).decode())",
        )
        for program in programs:
            outcome = run_tests(program, [InputTest("äb\n12\n", "äb\n12"), InputTest("x", "y")], layer="wasm")
            assert (outcome.passed, outcome.verdict.status) == ((True, False), "ok"), outcome
        read = "import sys\nprint(len(sys.stdin.buffer.read()))"
        tests = [InputTest("x\n" * 100_000, "200000"), InputTest("", "0")]
        assert run_tests(read, tests, layer="wasm").passed == (True, True)

    def test_output_of_just_the_limit_is_whole(self) -> None:
        verdict = run("print('x' * 4999)", Limits(output=5000))
        assert (verdict.status, verdict.stdout) == ("ok", "x" * 4999 + "\n")
        assert run("print('x' * 5000)", Limits(output=5000)).status == "killed"

    @pytest.mark.skipif(os.name != "posix", reason="no such limit on Windows")
    def test_the_size_of_a_file_is_limited(self) -> None:
        verdict = run("with open('x', 'wb') as file: file.write(bytes((8 << 20) + 1))")
        assert verdict.status == "error" and "File too large" in verdict.stderr

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("import os\nfor n in range(300): os.mkdir(str(n))", "made more than 100 files"),
            ("for n in range(12): open(str(n), 'wb').write(bytes(7 << 20))", "wrote more than 64 MB of files"),
            ("import os\nfor n in range(300): os.mkdir('/answers/' + str(n))", "made more than 100 files"),
        ],
    )
    def test_too_many_files_end_the_program(self, source: str, reason: str) -> None:
        verdict = run(f"{source}\nwhile True: pass")
        assert (verdict.status, verdict.reason) == ("killed", reason)

    def test_stack_exhaustion_affects_one_program_only(self) -> None:
        verdict = run("x = []\nfor n in range(10**6): x = [x]\nprint(repr(x))")
        assert verdict.status in ("error", "killed") and "RecursionError" in verdict.stderr
        assert run("print(8)").stdout == "8\n"


@here_only
class TestVerdict:
    @pytest.mark.parametrize(
        ("source", "status", "reason"),
        [
            ("", "ok", ""),
            ("import sys; sys.exit(3)", "error", "exit status 3"),
            ("import sys; sys.exit(200)", "error", "exit status 200"),
            ("import sys; sys.exit('no')", "error", "exit status 1"),
            ("import os; os._exit(0)", "ok", ""),
            ("import os; os.abort()", "killed", "by WebAssembly: unreachable"),
            ("raise KeyboardInterrupt", "error", "exit status 1"),
            ("this is no Python", "error", "exit status 1"),
            ("x = '\0'", "error", "exit status 1"),
            ("x = '\ud800'", "error", "exit status 1"),
        ],
    )
    def test_status(self, source: str, status: str, reason: str) -> None:
        verdict = run(source)
        assert (verdict.status, verdict.reason, verdict.layer) == (status, reason, "wasm")

    def test_an_exception_shows_the_programs_lines_only(self) -> None:
        verdict = run("def f():\n    return 1 / 0\nf()\n")
        assert verdict.stderr.startswith(
            'Traceback (most recent call last):\n  File "program.py", line 3, in <module>\n    f()'
        )
        assert verdict.stderr.endswith("ZeroDivisionError: division by zero\n")

    def test_a_program_has_the_same_modules_as_on_every_layer(self) -> None:
        verdict = run(
            "import collections, dataclasses, datetime, decimal, fractions, hashlib, heapq, itertools, json, math, os\n"
            "import random, re, sqlite3, statistics, string, sys, tempfile, typing, unittest, zoneinfo\n"
            "with tempfile.NamedTemporaryFile('w+') as file:\n    file.write('7'); file.seek(0); seven = file.read()\n"
            "print(sorted(os.environ), repr(sys.stdin.read()), os.listdir('.'), sys.argv, __name__)\n"
            "print(seven, hashlib.sha256(b'').hexdigest()[:4], zoneinfo.ZoneInfo('Europe/Berlin'), '我爱你')\n"
            "assert random.random() != random.random() and datetime.datetime.now().year > 2000\n"
        )
        assert (verdict.stderr, verdict.status) == ("", "ok")
        names = "['HOME', 'LANG', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED', 'TMPDIR', 'TZ']"
        assert verdict.stdout == f"{names} '' [] ['program.py'] __main__\n7 e3b0 Europe/Berlin 我爱你\n"

    def test_runs_are_alike_and_seeds_are_not(self) -> None:
        source = "print({str(n) for n in range(50)})"
        assert run(source).stdout == run(source).stdout
        assert (
            run("import random; print(random.random())").stdout != run("import random; print(random.random())").stdout
        )
