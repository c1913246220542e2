"""Unit tests of programs, the reward that uses them, and the command ``burnish sandbox``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from burnish.errors import BurnishError, InputError
from burnish.rewards.library import code as code_rewards
from burnish.rewards.library.code_blocks import extract_program
from burnish.sandbox.answers import Call, equal_json, run_tests
from burnish.sandbox.layers import get_runner, unavailable_reason
from burnish.sandbox.names import TITLES
from burnish.sandbox.run import Limits
from burnish.types import Completion, Prompt

here_only = pytest.mark.skipif(unavailable_reason() is not None, reason=f"NO SANDBOX HERE: {unavailable_reason()}")
QUICK = Limits(seconds=0.3)
ROOT = Path(__file__).parents[2]

ADD = "def add(a, b):\n    return a + b\n"
CALLS = [Call("add", (1, 2), 3), Call("add", ("a", "b"), "ab"), Call("add", ([1], [2]), [1, 2])]


@here_only
class TestAnswers:
    def test_right_and_wrong(self) -> None:
        assert run_tests(ADD, CALLS).passed == (True, True, True)
        assert run_tests("def add(a, b):\n    return a + b if a == 1 else None", CALLS).passed == (True, False, False)
        outcome = run_tests("def add(a, b):\n    print('shown')\n    return 3", CALLS)
        assert (outcome.passed, outcome.verdict.stdout) == ((True, False, False), "shown\n" * 3)

    @pytest.mark.parametrize(
        "program",
        [
            "import os; os._exit(0)",
            "import sys; sys.exit(0)",
            "def add(a, b): raise SystemExit(0)",
            "class Yes:\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes()",
            "class Yes(int):\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes(4)",
            "add = lambda a, b: True",
            "add = lambda a, b: float('nan')",
            "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nadd = lambda a, b: 0",
            "import json\njson.dumps = lambda *a, **k: '[' * 100000\nadd = lambda a, b: 0",
            "import json\njson.dumps = lambda *a, **k: '{\"value\": ' + '9' * 10000 + '}'\nadd = lambda a, b: 0",
            'import os\nfor n in range(3, 32):\n    try: os.write(n, b\'passed\\n{"passed": true}\\n{"value": {}}\\n\')\n'
            "    except OSError: pass\nos._exit(0)",
            "while True: pass",
            "subtract = 1",
            "def add(a, b): return {a}",
        ],
    )
    def test_only_right_answers_count(self, program: str) -> None:
        assert run_tests(program, CALLS, limits=QUICK).passed == (False, False, False)

    def test_a_flood_of_answers_is_cut(self) -> None:
        flood = (
            "import os\nwhile True:\n    for n in range(3, 32):\n"
            "        try: os.write(n, b'x' * 4096)\n        except OSError: pass"
        )
        outcome = run_tests(flood, CALLS)
        assert (outcome.verdict.status, outcome.verdict.reason) == ("killed", "wrote more than 65536 bytes on answers")

    def test_answers_before_the_end_count(self) -> None:
        assert run_tests("import os\ndef add(a, b):\n    return a + b if a == 1 else os._exit(1)", CALLS).passed == (
            True, False, False,
        )  # fmt: skip

    def test_values_that_json_cannot_represent_are_bad_input(self) -> None:
        for wrong in (Call("f", ({1},), 0), Call("f", (), (1, 2)), Call("f", (), {1: 2}), Call("f", (), float("nan"))):
            with pytest.raises(InputError, match="unit test of 'f'"):
                run_tests("", [wrong])

    @pytest.mark.parametrize(
        ("answer", "expected", "equal"),
        [
            (1, 1, True), (1, 1.0, True), (True, 1, False), (1, True, False), (0.1 + 0.2, 0.3, True), (0.30001, 0.3, False),
            ("1", 1, False), (None, 0, False), (None, None, True), ([1, [2.0]], [1, [2]], True), ([1], [1, 1], False),
            ({"a": 1}, {"a": 1.0}, True), ({"a": 1}, {"b": 1}, False), (10**400, 1.5, False), ([], {}, False),
        ],
    )  # fmt: skip
    def test_equal_json(self, answer: object, expected: object, equal: bool) -> None:
        assert equal_json(answer, expected) is equal


def unit_tests(one: Completion) -> float:
    return code_rewards.unit_tests([one])[0]


def completion(text: str, reference: str | None) -> Completion:
    return Completion(Prompt("p", "Add two numbers.", reference), (), (), text, (), "stop")


REFERENCE = json.dumps(
    {
        "calls": [
            {"function": "add", "arguments": [1, 2], "expected": 3},
            {"function": "add", "arguments": [2, 2], "expected": 4},
        ]
    }
)


@here_only
class TestReward:
    def test_scores_the_share_of_passed_tests(self) -> None:
        assert unit_tests(completion(f"Sure:\n```python\n{ADD}```\nDone.", REFERENCE)) == 1.0
        assert unit_tests(completion(ADD, REFERENCE)) == 1.0
        assert unit_tests(completion("def add(a, b): return 3", REFERENCE)) == 0.5
        assert unit_tests(completion("", REFERENCE)) == 0.0
        assert unit_tests(completion("我不会写程序。", REFERENCE)) == 0.0

    def test_a_program_that_claims_success_scores_zero(self) -> None:
        assert unit_tests(completion("import os\nprint('2 passed')\nos._exit(0)", REFERENCE)) == 0.0

    def test_the_program_is_the_first_block(self) -> None:
        assert extract_program("a\n```python\nx\n```\n```\ny\n```") == "x\n"
        assert extract_program("```py\nx\ny") == "x\ny"
        assert extract_program("x = 1") == "x = 1"

    @pytest.mark.parametrize("reference", [None, "", "3", "[]", '{"calls": []}', '{"calls": [{"function": 1}]}', "{"])
    def test_a_malformed_reference_is_bad_input(self, reference: str | None) -> None:
        with pytest.raises(InputError, match="prompt 'p'"):
            unit_tests(completion(ADD, reference))

    @pytest.mark.usefixtures("no_wasm")
    def test_without_a_sandbox_there_is_no_score(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "win32")
        with pytest.raises(BurnishError, match="'unit_tests': the sandbox needs Linux"):
            # A program of its own, since scores of earlier programs are cached.
            unit_tests(completion(f"{ADD}\nonly_in_this_test = 1\n", REFERENCE))


class TestCommand:
    def call(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        from burnish.cli import app as cli

        monkeypatch.setattr(sys, "argv", ["burnish", "sandbox", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    @here_only
    def test_shows_what_the_program_wrote(self, monkeypatch, capsys, tmp_path: Path) -> None:
        file = tmp_path / "program.py"
        file.write_text("import sys\nprint('\\x1b[31mred')\nprint('aside', file=sys.stderr)", encoding="utf-8")
        assert self.call(monkeypatch, str(file)) == 0
        shown = capsys.readouterr()
        assert shown.out == "\\x1b[31mred\n"
        assert shown.err.startswith("aside\nburnish: ok, ")

    @here_only
    def test_json_and_status(self, monkeypatch, capsys, tmp_path: Path) -> None:
        file = tmp_path / "program.py"
        file.write_text("while True: pass", encoding="utf-8")
        assert self.call(monkeypatch, str(file), "--json", "--seconds", "0.3", "--memory", "100") == 1
        found = json.loads(capsys.readouterr().out)
        assert list(found) == ["status", "reason", "stdout", "stderr", "seconds", "memory", "layer"]
        assert found["layer"] == TITLES[get_runner().layer]
        assert (found["status"], found["stdout"]) == ("timeout", "")

    def test_bad_input(self, monkeypatch, capsys, tmp_path: Path) -> None:
        (tmp_path / "bytes").write_bytes(b"\xff")
        for arguments in (["none.py"], [str(tmp_path)], [str(tmp_path / "bytes")], [__file__, "--memory", "1"]):
            assert self.call(monkeypatch, *arguments) == 2
            assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.usefixtures("no_wasm")
    def test_a_refusal_is_one_line(self, monkeypatch, capsys, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text("print(1)", encoding="utf-8")
        monkeypatch.setattr(sys, "platform", "darwin")
        assert self.call(monkeypatch, str(tmp_path / "program.py")) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("burnish: not run: the sandbox needs Linux")
        assert shown.err.count("\n") == 1


@here_only
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_code_in_the_documents_runs(language: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / language / "sandbox.md").read_text(encoding="utf-8")
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "ok 2\n\n(True,)\n"
