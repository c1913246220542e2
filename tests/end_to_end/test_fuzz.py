"""The fuzzer itself: it sees each kind of fault, makes failures small, draws the same cases again, and finds none here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

from bench.fuzz.batch import run_batch
from bench.fuzz.case import Case, Command, Link, Pipe, load_case
from bench.fuzz.server import Fault, Outcome

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

CONTROLS = """
import json, os, signal, sys, time
from pathlib import Path

from bench.fuzz import server as judge
from bench.fuzz.case import Case, Command, Link

judge.IDLE_SECONDS = 2
root = Path(sys.argv[1])
(root / "home").mkdir()
server = judge.Server(root / "place", root / "home", {"listing": "another"})


def through_a_link():
    Path("link").write_text("changed")


def waits():
    os.mkfifo("pipe")
    Path("pipe").read_bytes()


def fills():
    kept.append(bytearray(b"x") * (judge.RESIDENT + (100 << 20)))


kept = []
DEEDS = {
    "nothing": lambda: None,
    "exception": lambda: 1 / 0,
    "write": lambda: Path("../outside/new.txt").write_text("x"),
    "write through a link": through_a_link,
    "remove": lambda: Path("../outside/file.txt").unlink(),
    "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "wait": waits,
    "memory": fills,
    "silent end": lambda: os._exit(1),
    "odd status": lambda: os._exit(9),
}
found = {}
for name, deed in DEEDS.items():
    server.before = deed
    fault = server.run(Case("controls", {"link": Link("../outside/file.txt")}, (Command(("list", "recipes")),))).fault
    found[name] = fault and fault.kind
server.before = None
for equals in ("listing", ""):
    command = Command(("list", "recipes"), equals=equals)
    fault = server.run(Case("controls", {}, (command,))).fault
    found[f"equal to {equals}"] = fault and fault.kind
print(json.dumps(found))
"""


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_each_kind_of_fault_is_seen(tmp_path: Path) -> None:
    finished = python("-c", CONTROLS, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {
        "nothing": None, "exception": "traceback", "write": "outside write", "write through a link": "outside write",
        "remove": "outside write", "signal": "signal", "wait": "limit", "memory": "limit",
        "silent end": "unexplained",
        "odd status": "unexplained", "equal to listing": "silent acceptance", "equal to ": None,
    }  # fmt: skip


def numbered(number: int) -> Case:
    return Case("numbers", {"number.txt": str(number).encode()}, (Command(("list", "recipes")),), (str(number),))


def fails_above(limit: int, drawn: list[int]):
    def run(case: Case) -> Outcome:
        number = int(bytes(case.tree["number.txt"]))
        drawn.append(number)
        return Outcome((0,), Fault("traceback", "too large") if number > limit else None)

    return run


def test_a_failure_is_made_small_and_equal_ones_are_counted() -> None:
    known: set[str] = set()
    cases = st.integers(0, 10**6).map(numbered)
    batch = run_batch("numbers", 0, cases, fails_above(1234, []), start=0, size=50, known=known)
    assert [failure.case.changes for failure in batch.failures] == [("1235",)]
    assert known == {"traceback: too large"}
    again = run_batch("numbers", 1, cases, fails_above(1234, []), start=0, size=50, known=known)
    assert not again.failures and again.counts["traceback"] > 1
    assert again.counts["traceback"] + again.counts["accepted"] == again.counts["cases"]


def test_a_seed_draws_the_same_cases() -> None:
    drawn: dict[tuple[int, int], list[int]] = {}
    for start, number, repeat in ((0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 0, 3)):
        drawn[start, repeat] = []
        cases = st.integers(0, 10**6).map(numbered)
        run_batch("numbers", number, cases, fails_above(10**9, drawn[start, repeat]), start=start, size=20, known=set())
    assert drawn[0, 0] == drawn[0, 1] != drawn[0, 2] != drawn[1, 3] != drawn[0, 0]


def test_a_saved_case_is_the_same_case(tmp_path: Path) -> None:
    tree = {"a/b.bin": b"\x00\xff", "link": Link("../outside/file.txt"), "pipe": Pipe()}
    case = Case("runs", tree, (Command(("report", "a"), b"\xff", "bits"), Command(("check", "\udc80"))), ("cut",))
    case.save(tmp_path / "case")
    assert load_case(tmp_path / "case") == case


def test_some_cases_of_each_kind_find_no_fault(tmp_path: Path) -> None:
    finished = python("-m", "bench.fuzz", "--cases", 3, "--minutes", 5, "--workers", 1, "--out", tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = dict(re.findall(r"^ *(\w+) +(\d+) ", finished.stdout, re.MULTILINE))
    assert rows.keys() == {"recipes", "models", "runs", "data", "rewards", "all"}
    assert int(rows["all"]) > 10
