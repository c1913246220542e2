"""Programs in texts, and tests in the forms of public data sets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.rewards.library.code import unit_tests
from burnish.rewards.library.code_blocks import extract_program
from burnish.rewards.library.program_tests import canonical_tests, read_tests
from burnish.sandbox.answers import Call, ExpressionTest, InputTest, equal_output, run_tests
from burnish.sandbox.layers import unavailable_reason
from burnish.sandbox.program import FILE_BYTES
from burnish.sandbox.run import Limits
from burnish.types import Completion, Prompt

here_only = pytest.mark.skipif(unavailable_reason() is not None, reason=f"NO SANDBOX HERE: {unavailable_reason()}")
DOUBLE = "def double(x):\n    return 2 * x\n"
INDENTED = "   def double(x):\n       return 2 * x\n"
# The sixteen answers of docs/en/grading.md; each has the program DOUBLE.
ANSWERS = {
    "`python`": f"```python\n{DOUBLE}```",
    "`Python`": f"```Python\n{DOUBLE}```",
    "`python3`": f"```python3\n{DOUBLE}```",
    "`py`, prose around": f"Sure!\n\n```py\n{DOUBLE}```\nIt doubles x.",
    "info string": f'```python title="double.py"\n{DOUBLE}```',
    "attributes": f"```{{.python}}\n{DOUBLE}```",
    "no language": f"```\n{DOUBLE}```",
    "four backticks": f"````python\n{DOUBLE}````",
    "tildes": f"~~~python\n{DOUBLE}~~~",
    "CRLF": f"```python\n{DOUBLE}```".replace("\n", "\r\n"),
    "indented in a list": f"1. The function:\n   ```python\n{INDENTED}   ```\n2. Done.",
    "after a `bash` block": f"```bash\npip install x\n```\nThen:\n```python\n{DOUBLE}```",
    "before its output": f"```python\n{DOUBLE}```\nOutput:\n```\n4\n```",
    "a better one follows": f"```python\nx = 1\n```\nBetter:\n```python\n{DOUBLE}```",
    "cut off": f"```python\n{DOUBLE}",
    "no fence, prose around": f"Here is the code:\n\n{DOUBLE}\nThis works for all numbers.",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_program_in_a_text(name: str) -> None:
    assert extract_program(ANSWERS[name]).rstrip("\n") == DOUBLE.rstrip("\n")


def read(tests: Any, **metadata: Any) -> list[Any]:
    return read_tests("p", canonical_tests(Prompt("p", "", None, {"tests": tests, **metadata})))


def test_forms_of_tests() -> None:
    assert read({"calls": [{"function": "f", "arguments": [1], "expected": 2}]}) == [Call("f", (1,), 2)]
    assert read({"inputs": ["1 2\n"], "outputs": ["3\n"]}) == [InputTest("1 2\n", "3\n")]
    assert read(json.dumps({"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]})) == [Call("f", (1, [2]), 3, True)]
    assert read([{"input": "1\n", "output": "2", "testtype": "stdin"}]) == [InputTest("1\n", "2")]
    live = [{"input": '[1, 2]\n"a"', "output": "[3]", "testtype": "functional"}]
    assert read(live, func_name="f") == [Call("f", ([1, 2], "a"), [3])]
    asserts = [
        "assert f((1, 2)) == (3,)",
        "assert not g('a')",
        "assert set(f([1])) == set([2, 1])",
        "assert g(1) is None",
    ]
    assert read(asserts) == [
        ExpressionTest("f((1, 2))", [3]),
        ExpressionTest("bool(g('a'))", False),
        ExpressionTest("set(f([1]))", [1, 2]),
        ExpressionTest("g(1)", None),
    ]
    several = Prompt("p", "", "assert f(1) == 2", alternatives=("assert f(2) == 3",))
    assert read_tests("p", canonical_tests(several)) == [ExpressionTest("f(1)", 2), ExpressionTest("f(2)", 3)]


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (["assert abs(f(1) - 2) < 3"], "no value is expected in: assert abs"),
        (["import os"], "not an assert: import os"),
        (["assert f(1) == g(1)"], "malformed node"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "needs metadata with func_name"),
        ("eJxrYJmqyAAAAxAA", "must be JSON"),
        ({"inputs": "12", "outputs": "24"}, "inputs and outputs must be lists"),
        ({"inputs": ["ab"], "outputs": ["c"], "fn_name": "f"}, "each of the inputs of 'f' must be the list of"),
        ({"inputs": ["1" * (FILE_BYTES + 1)], "outputs": ["1"]}, "has more than 8 MiB"),
        ({"inputs": ["\ud800"], "outputs": ["1"]}, "surrogates not allowed"),
        (["assert f("], "must be JSON"),
        (5, "neither calls"),
    ],
)
def test_tests_that_cannot_be_read_are_refused(tests: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"the tests of prompt 'p' must be JSON.*{reason}|prompt 'p'.*{reason}"):
        read(tests)


def test_outputs_are_compared_by_words() -> None:
    assert equal_output("1 2 \n3\n\n", "1  2\n3")
    assert equal_output("0.33333333", "0.333333333333")
    assert not equal_output("1\n2", "1 2")
    assert not equal_output("1.0", "1")
    assert not equal_output("", "1")


def score(text: str, tests: Any, **metadata: Any) -> float:
    completion = Completion(Prompt("p", "", None, {"tests": tests, **metadata}), (1,), (2,), text, (0.0,), "stop")
    return unit_tests([completion], seconds=3.0)[0]


@here_only
def test_programs_pass_the_tests_of_every_form() -> None:
    both = f"{DOUBLE}if __name__ == '__main__':\n    print(double(int(input())))\n"
    assert score(both, ["assert double(2) == 4", "assert double((1,)) == (1, 1)"]) == 1.0
    stdin = {"inputs": ["2\n", "3\n", "x\n"], "outputs": ["4", "6", "8"]}
    assert score(both, stdin) == pytest.approx(2 / 3)
    assert score("import sys\nprint(2 * int(sys.stdin.buffer.read()))", stdin) == pytest.approx(2 / 3)
    assert score("print(2 * int(open(0).read()))", stdin) == pytest.approx(2 / 3)
    leet = "class Solution:\n    def double(self, x):\n        return 2 * x\n"
    assert score(leet, {"fn_name": "double", "inputs": [[2], [3]], "outputs": [4, 7]}) == 0.5
    listed = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]}
    assert [score(f"def f(x): return {value}", listed) for value in ("x", "[x]", "[[x]]", "1")] == [1.0, 1.0, 0.0, 0.5]
    # A failing main block does not fail a right function.
    assert score(f"{DOUBLE}if __name__ == '__main__':\n    raise SystemError\n", ["assert double(1) == 2"]) == 1.0


@here_only
def test_a_right_answer_of_any_length_passes() -> None:
    size = 2 * Limits().output
    assert run_tests(f"print('x' * {size})", [InputTest("", "x" * size)]).passed == (True,)
    assert run_tests(f"def f():\n    return 'x' * {size}", [Call("f", (), "x" * size)]).passed == (True,)
    endless = run_tests("while True: print('x')", [InputTest("", "x" * size)])
    assert endless.passed == (False,) and endless.verdict.reason == f"wrote more than {2 * size + 4} bytes on stdout"


@here_only
def test_each_test_has_its_own_time() -> None:
    slow = "def f(x):\n    while x == 1: pass\n    return x\n"
    calls = [Call("f", (n,), n) for n in (0, 1, 2)]
    outcome = run_tests(slow, calls, limits=Limits(seconds=0.3))
    assert (outcome.passed, outcome.verdict.status) == ((True, False, True), "timeout")
    hangs = run_tests("while True: pass", [InputTest("", "")] * 50, limits=Limits(seconds=0.2))
    assert hangs.passed == (False,) * 50 and hangs.verdict.status == "timeout"
