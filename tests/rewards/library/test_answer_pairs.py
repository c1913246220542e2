"""Verdicts on replies to gold answers, labelled by hand in ``answer_pairs.jsonl``.

Each line is a subject, the reward that grades it, the gold answer, right and wrong replies. A reply to ``math`` is what
a model would write in its box.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.rewards.combine import combine
from burnish.rewards.library import expressions, math_worker
from burnish.rewards.library.answers import exact, numeric
from burnish.rewards.library.readings import extract_answer
from tests.rewards.completions import ODD_TEXTS, answer

ROWS = [
    json.loads(line) for line in Path(__file__).with_name("answer_pairs.jsonl").read_text(encoding="utf-8").splitlines()
]
DOCS = Path(__file__).parents[3] / "docs"


def verdict(reward: str, gold: str, reply: str) -> float:
    text = f"So it is \\boxed{{{reply}}}." if reward == "math" else reply
    return float(combine({reward: 1.0}).score([answer(text, gold)]).total[0])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=f"{row['reward']}-{row['gold'][:20]}",
            marks=[pytest.mark.slow] if row["reward"] == "math" else [],  # a process of its own for each
        )
        for row in ROWS
    ],
)
def test_no_verdict_is_wrong(row: dict[str, Any]) -> None:
    if row["reward"] == "math":
        pytest.importorskip("math_verify", reason="pip install 'burnish[math]'")
    expected = dict.fromkeys(row["right"], 1.0) | dict.fromkeys(row["wrong"], 0.0)
    assert {reply: verdict(row["reward"], row["gold"], reply) for reply in expected} == expected


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_documents_count_the_pairs(language: str) -> None:
    text = (DOCS / language / "grading.md").read_text(encoding="utf-8")
    counts = {
        subject: tuple(sum(len(row[side]) for row in ROWS if row["subject"] == subject) for side in ("right", "wrong"))
        for subject in dict.fromkeys(row["subject"] for row in ROWS)
    }
    rows = re.findall(r"^\| ([a-z0-9, ]+) \| (\d+) \| (\d+) \| 0 \| \d+ \|", text, re.M)
    assert {subject: (int(right), int(wrong)) for subject, right, wrong in rows} == counts


@pytest.mark.parametrize(
    ("reward", "reference", "message"),
    [
        ("numeric", "1,5", r"prompt 'p' is '1,5': use 'math' for expressions"),
        ("numeric", "2\\sqrt{3}", "one number"),
        ("choice", "2", "a letter from A to J, but that of prompt 'p' is '2'"),
        ("choice", "A or B", "letter from A to J"),
        ("choice", '{"a": 1}', "letter from A to J"),
        ("exact", "", "has none"),
    ],
)
def test_a_reference_that_cannot_be_read_is_refused(reward: str, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message) if "p'" in message else message):
        verdict(reward, reference, "5")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}', '{"A": "B"}', "{'a': 1, 'b': 2}", '```json\n{"a": ["B", "C"]}\n```', 'So: {"b": {"a": 1}}', '"A": 1',
        "'A' or 'B'", '{"a": "', '{"5": "x"}', "{'7': 1",
    ],
)  # fmt: skip
def test_a_key_is_not_an_answer(text: str) -> None:
    assert [verdict("choice", gold, text) for gold in "ABC"] == [0.0] * 3
    assert verdict("numeric", "5", text) == verdict("numeric", "7", text) == 0.0


@pytest.mark.parametrize(
    ("reward", "gold", "text"),
    [
        ("choice", "B", '{"answer": "B"}'), ("choice", "B", '{"a": 1, "answer": "B"}'), ("choice", "B", '"B"'),
        ("numeric", "42", '{"answer": 42, "step 7": "x"}'), ("numeric", "5", 'He said "5": no more.'),
    ],
)  # fmt: skip
def test_a_value_beside_keys_is_one(reward: str, gold: str, text: str) -> None:
    assert verdict(reward, gold, text) == 1.0


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("reward", ["numeric", "choice", "exact"])
def test_odd_texts_are_wrong(reward: str, text: str) -> None:
    assert verdict(reward, "B" if reward != "numeric" else "7", text) == 0.0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed{\\{2, 3\\}}.", "\\{2, 3\\}"),
        ("\\boxed 5", "5"),
        ("\\fbox{x}", "x"),
        ("\\boxed{1} \\boxed{2", ""),  # cut off
        ("5", ""),
    ],
)
def test_the_last_box_counts(text: str, box: str) -> None:
    assert extract_answer(text, "boxed") == box


@pytest.mark.parametrize("kind", ["boxed", "tag", "last_line", "last_number"])
def test_exact_and_numeric_have_the_same_readings(kind: str) -> None:
    text = "It may be 8.\n<answer>\\boxed{1,000}</answer>" if kind == "tag" else "It may be 8.\n\\boxed{1,000}"
    assert numeric(answer(text, "1000"), answer=kind) == 1.0
    expected = {"tag": "\\boxed{1,000}", "last_line": "\\boxed{1,000}"}.get(kind, "1000")
    gold = {"boxed": "1,000", "last_number": "1,000"}.get(kind, f"#### {expected}")
    assert exact(answer(text, gold), answer=kind) == 1.0


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        ("choice", "The answer" + 3000 * " " + "x"),
        ("choice", "The answer" + 3000 * "\n" + "x"),
        ("choice", 4000 * "choice "),
        ("choice", 8000 * "{" + 8000 * "}"),
        ("choice", 8000 * '"a":'),
        ("choice", 8000 * "'a':{"),
        ("numeric", 8000 * "{'1"),
        ("math", 20000 * "\\boxed{"),
        ("numeric", 20000 * "1 , "),
    ],
)
def test_long_texts_take_little_time(reward: str, text: str) -> None:
    start = time.process_time()
    assert verdict(reward, "B" if reward == "choice" else "7", text) == 0.0
    assert time.process_time() - start < 2


def test_the_last_closed_tag_counts_in_linear_time() -> None:
    assert extract_answer("<answer>1</answer> or <answer>a<answer>2</answer></answer><answer>", "tag") == "a<answer>2"
    start = time.process_time()
    assert extract_answer(30000 * "<answer>", "tag") == ""
    assert time.process_time() - start < 2


def test_after_an_interrupted_comparison_the_next_verdict_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="pip install 'burnish[math]'")
    assert verdict("math", "\\sqrt{2}", "2^{1/2}") == 1.0  # starts the process

    def interrupt(self: object, seconds: float) -> str:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(expressions._Worker, "_read", interrupt)
            verdict("math", "\\sqrt{11}", "11^{1/2}")
    finally:
        signal.signal(signal.SIGINT, before)
    assert verdict("math", "\\sqrt{13}", "13^{1/3}") == 0.0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_the_process_ends_itself_if_nothing_else_does() -> None:
    pytest.importorskip("math_verify", reason="pip install 'burnish[math]'")
    command = [sys.executable, "-I", math_worker.__file__, str(expressions.MEMORY), "0.5"]
    slow = json.dumps(["1", "9^{9^{9^{9}}}+\\sqrt{2}^{9^{9^9}}"]) + "\n"
    done = subprocess.run(command, input=slow.encode(), stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGALRM and done.stdout == b"ready\n"


def test_an_answer_of_very_many_brackets_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_math_verify", lambda gold, answer: pytest.fail("it would take its 5 seconds"))
    for deep in ("(" * 200 + "x+1" + ")" * 200, "\\sqrt{" * 99 + "x" + "}" * 99, "(" * 200 + ",1)" * 200):
        assert verdict("math", "x+1", deep) == verdict("math", deep, "x+1") == 0.0
        assert verdict("math", deep, deep) == 1.0
    monkeypatch.setattr(expressions, "_math_verify", lambda gold, answer: True)
    assert verdict("math", "x+1", "(" * 12 + "1+x" + ")" * 12) == 1.0


def test_a_comparison_that_takes_too_long_is_wrong_and_the_next_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="pip install 'burnish[math]'")
    assert verdict("math", "\\sqrt{2}", "2^{1/2}") == 1.0  # starts the process
    monkeypatch.setattr(expressions, "SECONDS", 0.1)
    process = expressions._worker.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)  # it never answers, however fast the machine is
    assert verdict("math", "\\sqrt{5}", "5^{1/2}") == 0.0
    monkeypatch.undo()
    assert verdict("math", "\\sqrt{7}", "7^{1/2}") == 1.0


def test_a_process_that_was_killed_is_replaced_and_leaves_no_open_file() -> None:
    pytest.importorskip("math_verify", reason="pip install 'burnish[math]'")
    assert verdict("math", "\\sqrt{11}", "11^{1/2}") == 1.0
    process = expressions._worker.process
    assert process is not None and process.stdout is not None and process.stdin is not None
    process.kill()
    process.wait()
    assert verdict("math", "\\sqrt{13}", "13^{1/2}") == 1.0
    assert process.stdout.closed and process.stdin.closed
