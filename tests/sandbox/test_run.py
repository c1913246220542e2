"""Running a program: its limits, its verdict and its folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from burnish.errors import InputError
from burnish.sandbox import folder as folder_module
from burnish.sandbox.folder import exceeded_limit, temporary_folder
from burnish.sandbox.layers import unavailable_reason
from burnish.sandbox.linux import supervise
from burnish.sandbox.run import Limits, Verdict, run

pytestmark = pytest.mark.usefixtures("nothing_is_left")
here_only = pytest.mark.skipif(unavailable_reason() is not None, reason=f"NO SANDBOX HERE: {unavailable_reason()}")
QUICK = Limits(seconds=0.3)


@here_only
class TestLimits:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "source",
        [
            "while True: pass",
            "print(10 ** 10 ** 10)",  # one call, during which Python handles no signals
            "import signal\nfor n in {*range(1, 65)} - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
            "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
            "import os, time\nos.close(1); os.close(2); time.sleep(60)",
            "import time\ntry:\n    time.sleep(60)\nfinally:\n    time.sleep(60)",
            "import atexit, time\natexit.register(time.sleep, 60)",
        ],
    )
    def test_endless_programs_are_ended(self, source: str) -> None:
        verdict = run(source, limits=QUICK)
        assert (verdict.status, verdict.reason) == ("timeout", "ran longer than 0.3 s")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "source", ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))", "x = 'a' * (1 << 40)"]
    )
    def test_memory_runs_out(self, source: str) -> None:
        verdict = run(source, limits=Limits(memory=128))
        assert (verdict.status, verdict.stderr) == ("memory", "MemoryError: over the sandbox's limit\n")

    def test_a_handled_memory_error_is_not_a_failure_and_memory_is_measured(self) -> None:
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

    def test_the_size_of_a_file_is_limited(self) -> None:
        verdict = run("with open('x', 'wb') as file: file.write(bytes((8 << 20) + 1))")
        assert verdict.status == "error"
        assert "[Errno 27] File too large" in verdict.stderr

    def test_the_total_size_of_files_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_module, "MAX_BYTES", 2 << 20)
        verdict = run("import time\nfor n in range(9): open(str(n), 'wb').write(bytes(1 << 20))\ntime.sleep(60)")
        assert (verdict.status, verdict.reason) == ("killed", "wrote more than 2 MB of files")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "source",
        [
            "import os, time\nfor n in range(300): os.mkdir(str(n))\ntime.sleep(60)",
            "import os, time\nfor n in range(400):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\ntime.sleep(60)",
        ],
    )
    def test_many_or_deep_folders_end_the_program_and_are_removed(self, source: str) -> None:
        assert run(source).status == "killed"

    def test_locked_folders_are_removed(self) -> None:
        verdict = run("import os\nos.makedirs('a/b/c'); os.mkdir('a/b/locked', 0)\nos.symlink('/', 'a/root')")
        assert verdict.status == "ok"

    def test_limits_out_of_range_are_bad_input(self) -> None:
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

    def test_invalid_utf8_is_escaped(self) -> None:
        assert run(r"import os; os.write(1, b'a\xff')").stdout == r"a\xff"

    def test_sets_have_the_same_order_in_every_run(self) -> None:
        source = "print({str(n) for n in range(50)})"
        assert run(source).stdout == run(source).stdout

    @pytest.mark.slow
    def test_several_threads_run_programs_at_once(self) -> None:
        verdicts: dict[int, Verdict] = {}

        def one(number: int) -> None:
            verdicts[number] = run(f"print({number})")

        threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {number: verdict.stdout for number, verdict in verdicts.items()} == {n: f"{n}\n" for n in range(6)}

    def test_ctrl_c_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(supervise, "exceeded_limit", stop)
        with pytest.raises(KeyboardInterrupt):
            run("while True: pass")


class TestFolder:
    def test_files_outside_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").write_text("x", encoding="utf-8")
        with temporary_folder() as folder:
            os.makedirs(f"{folder}/a/b")
            os.symlink(tmp_path / "kept", f"{folder}/a/b/link")
            os.symlink(tmp_path / "kept", f"{folder}/link")
            assert exceeded_limit(folder) is None
        assert not os.path.exists(folder)
        assert (tmp_path / "kept" / "file").read_text(encoding="utf-8") == "x"
