"""Layers of the sandbox: selection, what a program sees, and isolation of programs from each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from burnish.backends.preflight import check_dependencies
from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import load_recipe
from burnish.rewards.library.code import unit_tests
from burnish.sandbox import layers
from burnish.sandbox import run as run_module
from burnish.sandbox.run import Limits, Verdict, run
from burnish.types import Completion, Prompt

pytestmark = pytest.mark.usefixtures("nothing_is_left")
PACKAGE = Path(run_module.__file__).parents[1]
here_only = pytest.mark.skipif(
    layers.unavailable_reason() is not None, reason=f"NO SANDBOX HERE: {layers.unavailable_reason()}"
)
QUICK = Limits(seconds=0.3)


@pytest.fixture
def namespaces() -> str:
    try:
        return layers.get_runner("namespaces").layer
    except layers.Unavailable as error:
        pytest.skip(f"NO NAMESPACES HERE: {error}")


def in_copy(folder: Path, code: str) -> str:
    """Return what code prints that runs with a copy of the package."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def slow_case(*values: str) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


class TestChoice:
    def test_the_strongest_working_layer_is_used(self, namespaces: str) -> None:
        assert run("print(1)").layer == "namespaces + landlock + seccomp"
        assert run("print(1)", layer="landlock").layer == "landlock + seccomp"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("text", "replacement", "leak"),
        [
            slow_case("_NEW_NETWORK | ", "", "connecting to this machine succeeded"),
            slow_case('kernel.syscall("pivot_root", b".", b".")', "", "seeing processes succeeded"),
            slow_case('max_user_namespaces", "0"', 'max_user_namespaces", "9"', "making a user namespace succeeded"),
            slow_case("_NEW_PID | signal.SIGCHLD", "signal.SIGCHLD", "signalling a process outside succeeded"),
            ("user, group =", "raise OSError('no namespaces')\n    user, group =", "no namespaces"),
        ],
    )  # fmt: skip
    def test_the_next_layer_is_used_if_namespaces_leak(
        self, text: str, replacement: str, leak: str, namespaces: str, tmp_path: Path,
        copy_of_the_package: Callable[[Path], Path],
    ) -> None:  # fmt: skip
        changed = copy_of_the_package(tmp_path) / "linux" / "namespaces.py"
        before = changed.read_text(encoding="utf-8")
        assert before.count(text) == 1
        changed.write_text(before.replace(text, replacement), encoding="utf-8")
        printed = in_copy(
            tmp_path,
            "from burnish.sandbox.run import run\n"
            "print(run('').layer)\nv = run('', layer='namespaces')\nprint(v.status, v.reason)",
        )
        used, refused = printed.splitlines()
        assert used == "landlock + seccomp"
        assert refused.startswith("refused namespaces + landlock + seccomp: ") and leak in refused

    def test_every_attack_on_namespaces_succeeds_without_them(self, namespaces: str) -> None:
        # The control: attacks that fail anywhere would prove nothing.
        code = (
            "import os\nfrom burnish.sandbox.linux.namespaces import *\n"
            "print(len(ATTACKS), len(find_namespace_leaks(os.getppid())))"
        )
        every, succeeded = in_copy(PACKAGE.parent, code).split()
        assert int(succeeded) == int(every) + 1  # it is not the first process either

    def test_an_unknown_layer_is_bad_input(self) -> None:
        with pytest.raises(
            InputError, match="sandbox = 'docker': must be one of strongest, namespaces, landlock, wasm, none"
        ):
            run("print(1)", layer="docker")


@here_only
class TestWithin:
    def test_nothing_outside_is_visible(self, namespaces: str) -> None:
        source = (
            "import os, socket, sys\n"
            "print(os.getpid(), os.getppid(), os.getuid())\n"
            f"for path in ('/proc', '/etc/passwd', '/sys', '/var', '/run', {str(PACKAGE)!r}, '/proc/{os.getpid()}'):\n"
            "    try:\n        print('BREACH', path, os.stat(path))\n"
            "    except FileNotFoundError:\n        pass\n"
            "for path in (os.path.dirname(os.__file__) + '/site-packages', '/usr/lib/python3/dist-packages'):\n"
            "    if os.path.exists(path): print(os.listdir(path))\n"
            "try:\n    print('BREACH', os.listdir('..'))\nexcept PermissionError:\n    pass\n"
        )
        verdict = run(source, layer=namespaces)
        assert verdict.status == "ok", verdict
        first, *rest = verdict.stdout.splitlines()
        assert first == "2 1 65534" and set(rest) <= {"[]"}

    def test_a_program_leaves_nothing_to_the_next(self, layer: str) -> None:
        spoil = (
            "import builtins, json, os, sys, time\n"
            "builtins.print = json.dumps = os.listdir = None\nsys.modules['math'] = None\nsys.path.clear()\n"
            "time.spoilt = os.environ['SPOILT'] = 'yes'\nos.chdir('/')\nopen(os.environ['HOME'] + '/file', 'w').write('x')\n"
        )
        look = (
            "import json, math, os, sys, time\n"
            "seen = [hasattr(time, 'spoilt'), 'SPOILT' in os.environ, os.listdir(), math.pi > 3, len(sys.path) > 1]\n"
            "print(json.dumps(seen))"
        )
        assert run(spoil, layer=layer).status == "ok"
        assert json.loads(run(look, layer=layer).stdout) == [False, False, [], True, True]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can look into the process that starts programs")
    def test_the_process_that_starts_programs_never_reads_one(
        self, layer: str, children_of: Callable[[int], set[int]]
    ) -> None:
        secret = "".join(("hun", "ter", "2", "of", "this", "test"))
        assert run(f"x = {secret!r} * 100", layer=layer).status == "ok"
        for server in children_of(os.getpid()):
            with open(f"/proc/{server}/maps", encoding="utf-8") as maps, open(f"/proc/{server}/mem", "rb") as memory:
                for line in maps:
                    start, end = (int(address, 16) for address in line.split()[0].split("-"))
                    if " rw" in line and "[v" not in line:
                        memory.seek(start)
                        assert secret.encode() not in memory.read(end - start), line

    @pytest.mark.slow
    def test_a_killed_server_is_restarted_and_its_programs_continue(
        self, layer: str, children_of: Callable[[int], set[int]]
    ) -> None:
        found: list[Verdict] = []
        thread = threading.Thread(
            target=lambda: found.append(
                run("import time\nprint('in', flush=True)\ntime.sleep(0.5)\nprint(7)", layer=layer)
            )
        )
        thread.start()
        while not (inside := [p for server in children_of(os.getpid()) for p in children_of(server)]):
            time.sleep(0.01)
        time.sleep(0.2)
        for server in children_of(os.getpid()):
            os.kill(server, signal.SIGKILL)
        thread.join()
        assert inside and (found[0].status, found[0].stdout) == ("ok", "in\n7\n")
        assert run("print(8)", layer=layer).stdout == "8\n"

    @pytest.mark.slow
    def test_the_death_of_a_supervisor_kills_its_program(
        self, layer: str, children_of: Callable[[int], set[int]]
    ) -> None:
        found: list[Verdict] = []
        thread = threading.Thread(target=lambda: found.append(run("while True: pass", layer=layer)))
        thread.start()

        def running() -> list[tuple[int, int]]:
            watchers = [w for server in children_of(os.getpid()) for w in children_of(server)]
            return [(w, p) for w in watchers for p in children_of(w)]

        while not running():
            time.sleep(0.01)
        time.sleep(0.2)
        ((watcher, program),) = running()
        os.kill(watcher, signal.SIGKILL)
        thread.join()
        assert (found[0].status, found[0].reason) == ("killed", "by SIGKILL")
        for _ in range(500):
            if not os.path.exists(f"/proc/{program}"):
                break
            time.sleep(0.02)
        else:
            pytest.fail("the program is still running")

    @pytest.mark.slow
    def test_a_forked_process_starts_its_own_server(self, layer: str) -> None:
        assert run("print(1)", layer=layer).stdout == "1\n"
        code = (
            "import os\nfrom burnish.sandbox import layers\nfrom burnish.sandbox.run import run\n"
            f"layer = {layer!r}\nrun('', layer=layer)\nchild = os.fork()\n"
            "said = run('print(1)', layer=layer).stdout\nlayers.close()\n"
            "if child == 0: os._exit(said != '1\\n')\nprint(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)"
        )
        assert in_copy(PACKAGE.parent, code) == "0 1\n\n"


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
class TestNone:
    @pytest.mark.slow
    def test_it_has_limits_only(self) -> None:
        verdict = run("open('/etc/passwd').close()\nprint(len(__import__('os').environ))", layer="none")
        assert (verdict.status, verdict.stdout, verdict.layer) == ("ok", "6\n", "none: limits alone")
        assert run("while True: pass", layer="none", limits=QUICK).status == "timeout"
        assert run("x = bytearray(1 << 30)", layer="none", limits=Limits(memory=128)).status == "memory"
        assert run("while True: print('x' * 999)", layer="none", limits=Limits(output=5000)).status == "killed"
        assert run("import sys; sys.exit('no')", layer="none").status == "error"

    @pytest.mark.usefixtures("no_wasm")
    def test_it_must_be_named_on_other_systems(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layers.sys, "platform", "freebsd14")
        assert run("print(1)").status == "refused"
        assert run("print(1)", layer="none").stdout == "1\n"

    @pytest.mark.skipif(
        os.geteuid() == 0, reason="where a limit on processes does not bind root, it is root's test below"
    )
    def test_an_ordinary_user_starts_no_process(self) -> None:
        assert "Error" in run("import os\nos.fork()", layer="none").stderr

    @pytest.mark.skipif(os.geteuid() != 0, reason="a limit on processes binds all but root")
    def test_its_process_group_ends_with_it(self) -> None:
        verdict = run(
            "import os, time\nif os.fork() == 0: time.sleep(60)\nprint(os.getpid(), flush=True)",
            layer="none",
            limits=QUICK,
        )
        assert verdict.status in ("ok", "timeout")
        for _ in range(500):
            members = [p for p in os.listdir("/proc") if p.isdigit() and group(p) == int(verdict.stdout)]
            if not members:
                break
            time.sleep(0.02)
        else:
            pytest.fail(f"{members} are still running")


def group(process: str) -> int | None:
    """Return the process group of a process, or None if it is a zombie or has ended."""
    try:
        state, _, number = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
    except OSError:
        return None
    return None if state == "Z" else int(number)


class Listener:
    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def message(self, text: str, *, level: str = "info") -> None:
        self.messages.append((level, text))

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


def completions(programs: Sequence[str]) -> list[Completion]:
    tests = json.dumps({"calls": [{"function": "add", "arguments": [1, 2], "expected": 3}]})
    return [Completion(Prompt("p", "Add.", tests), (), (), program, (), "stop") for program in programs]


class TestReward:
    def test_the_log_names_the_layer(self, layer: str) -> None:
        listener = Listener()
        check_dependencies(load_recipe("code", changes={"reward": [{"use": "unit_tests", "sandbox": layer}]}), listener)
        assert listener.messages == [("info", f"sandbox: {layers.TITLES[layer]}")]

    @pytest.mark.usefixtures("no_wasm")
    def test_none_must_be_set_explicitly_and_logs_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layers.sys, "platform", "freebsd14")
        listener = Listener()
        with pytest.raises(
            BurnishError, match=r'needs Linux.*unless the \[\[reward\]\] sets sandbox = "none"'
        ) as refused:
            check_dependencies(load_recipe("code"), listener)
        assert "\n" not in str(refused.value) and listener.messages == []
        check_dependencies(
            load_recipe("code", changes={"reward": [{"use": "unit_tests", "sandbox": "none"}]}), listener
        )
        ((level, text),) = listener.messages
        assert level == "warning" and 'sandbox = "none"' in text
        right, wrong = completions(["def add(a, b): return a + b  # none", "def add(a, b): return 0  # none"])
        assert unit_tests([right, wrong], sandbox="none") == [1.0, 0.0]
        with pytest.raises(BurnishError, match="unless the"):
            unit_tests([right])

    def test_options_are_checked_with_the_recipe(self) -> None:
        for wrong in ({"sandbox": "docker"}, {"seconds": 0.0}, {"memory": 1}):
            with pytest.raises(InputError, match=r"reward\.0: 'unit_tests': sandbox"):
                load_recipe("code", changes={"reward": [{"use": "unit_tests", **wrong}]})

    @here_only
    def test_scores_are_in_the_order_of_the_programs(self) -> None:
        slow = "import time\ntime.sleep(0.3)\ndef add(a, b): return a + b  # slow"
        programs = [slow, "def add(a, b): return 0  # now", slow, "def add(a, b): return a + b  # now"]
        assert unit_tests(completions(programs)) == [1.0, 0.0, 1.0, 1.0]
