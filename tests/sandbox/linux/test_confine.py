"""Confinement of programs: a missing restriction is noticed, and the filter allows exactly the calls that it lists."""

from __future__ import annotations

import errno
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.sandbox import run as run_module
from burnish.sandbox.layers import unavailable_reason
from burnish.sandbox.run import run

pytestmark = pytest.mark.usefixtures("nothing_is_left")
PACKAGE = Path(run_module.__file__).parents[1]
here_only = pytest.mark.skipif(unavailable_reason() is not None, reason=f"NO SANDBOX HERE: {unavailable_reason()}")


@here_only
class TestConfinement:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("file", "restriction", "leak"),
        [
            ("linux/confine.py", "    landlock.restrict(rules)\n", "reading /etc/passwd succeeded"),
            ("linux/confine.py", "    seccomp.install()\n", "opening a socket succeeded"),
            ("linux/seccomp.py", '    "sendto", ', None),
        ],
    )
    def test_nothing_runs_without_a_restriction(
        self, file: str, restriction: str, leak: str | None, tmp_path: Path, copy_of_the_package: Callable[[Path], Path]
    ) -> None:
        (tmp_path / "copy").mkdir()
        changed = copy_of_the_package(tmp_path / "copy") / file
        text = changed.read_text(encoding="utf-8")
        assert restriction in text
        # The third case keeps the filter, but allows sockets.
        changed.write_text(text.replace(restriction, "" if leak else restriction + '"socket", '), encoding="utf-8")
        code = (
            "import burnish.sandbox.wasm.files as w; w.missing_packages = lambda: 'no wasm'\n"
            "import burnish.sandbox.run as r; v = r.run('print(1)'); print(v.status, v.reason, repr(v.stdout))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "copy")}, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        for title in ("namespaces + landlock + seccomp", "landlock + seccomp"):
            assert f"{title}: the confinement leaks: " in done.stdout
        assert done.stdout.startswith("refused ") and (leak or "opening a socket succeeded") in done.stdout
        assert done.stdout.endswith("''\n")

    def test_every_attack_succeeds_without_confinement(self) -> None:
        # The control: attacks that fail anywhere would prove nothing.
        code = (
            "from burnish.sandbox.linux import confine as c\n"
            "assert c.find_leaks() == [f'{n} succeeded' for n in c.ATTACKS]"
        )
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE.parent)}, check=True)

    @pytest.mark.usefixtures("no_wasm")
    def test_other_systems_get_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from burnish.sandbox.linux import kernel, landlock

        monkeypatch.setattr(landlock, "version", lambda: 0)
        assert "Landlock (Linux 5.13" in run("print(1)").reason
        monkeypatch.setattr(kernel, "machine", lambda: "riscv64")
        assert "this is riscv64" in run("print(1)").reason
        monkeypatch.setattr(sys, "platform", "darwin")
        verdict = run("print(1)")
        assert (verdict.status, verdict.stdout) == ("refused", "")
        assert verdict.reason.startswith("the sandbox needs Linux") and "\n" not in verdict.reason

    @pytest.mark.slow
    def test_a_program_does_not_outlive_a_killed_parent(
        self, layer: str, tmp_path: Path, children_of: Callable[[int], set[int]], outlives_nobody: Callable[[Any], None]
    ) -> None:
        code = f"from burnish.sandbox.run import *; run('while True: pass', limits=Limits(seconds=60), layer={layer!r})"
        environment = {"PYTHONPATH": str(PACKAGE.parent), "TMPDIR": str(tmp_path)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
            inside: list[int] = []
            # The server, a supervisor and the program. With the filter installed, its loop is certain to be reached.
            while parent.poll() is None and not any(map(filtered, inside)):
                time.sleep(0.02)
                inside = descendants(parent.pid, children_of)
            assert len(inside) == 3
            parent.send_signal(signal.SIGKILL)
        outlives_nobody(inside)


def descendants(of: int, children_of: Callable[[int], set[int]]) -> list[int]:
    return [found for child in children_of(of) for found in (child, *descendants(child, children_of))]


def filtered(process: int) -> bool:
    try:
        return "Seccomp:\t2" in Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def evaluate(code: bytes, machine: int, call: int, arguments: tuple[int, ...]) -> int:
    """Evaluate a filter: those instructions of classic BPF (linux/filter.h) that it uses."""
    data = struct.pack(
        "=iIQ6Q", call, machine, 0, *(value % (1 << 64) for value in arguments + (0,) * (6 - len(arguments)))
    )
    index, accumulator = 0, 0
    while True:
        operation, yes, no, operand = struct.unpack_from("=HBBI", code, 8 * index)
        index += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x15:
            index += yes if accumulator == operand else no
        else:
            assert operation == 0x06
            return operand


class TestFilter:
    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    def test_allows_exactly_the_listed_calls(self, machine: str) -> None:
        from burnish.sandbox.linux import kernel, seccomp

        allow, refuse, absent = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
        code = seccomp.build_filter(42, machine)
        assert len(code) // 8 < 4096

        def answer(name: str, *arguments: int) -> int:
            number = kernel.syscall_number(name, machine)
            assert number is not None
            return evaluate(code, kernel.ARCHITECTURES[machine], number, arguments)

        assert {answer(n) for n in seccomp.ALLOWED if kernel.syscall_number(n, machine) is not None} == {allow}
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
