"""Every generator of the installed reasoning-gym, tried as burnish uses it; the faults of each, and its speed.

python bench/generators.py           a table
python bench/generators.py --json    the same as JSON: generator -> row

Two processes with different hash seeds make the same questions; the first one also asks the reward ``verifier`` about
each question's own answer (as made, and after JSON), an empty text, constants, the answers of other questions, and a
text that must not be evaluated. ``burnish.tasks.generators.REFUSED`` has the generators with a fault.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from burnish.errors import InputError
from burnish.rewards.library.answers import verifier
from burnish.tasks.generators import generate_entries, get_verifier
from burnish.types import Completion, Prompt

ROWS, SLOW_ROWS = 16, 4
SLOW = (
    "arc_agi", "countdown", "futoshiki", "intermediate_integration", "knight_swap", "puzzle24", "quantum_lock",
    "sokoban", "sudoku", "zebra_puzzles",
)  # fmt: skip
MANY = {"codeio": 176}
"""Questions of a generator of which few depend on the hash seed."""
HASH_SEEDS = ("1", "3")
CONSTANTS = (
    "0",
    "1",
    "-1",
    "0.5",
    "True",
    "False",
    "yes",
    "No",
    "None",
    "[]",
    "{}",
    "A",
    "x",
    "()",
    "[[]]",
    "nan",
    "inf",
)
MARK = "7391"
"""Digits that an audit hook recognises when an answer with them is compiled."""
MOST_SHARED = 0.1
"""Share of the other questions' answers that may be right as well: a board can have several solutions."""

Row = dict[str, Any]


def verdict(name: str, entry: Row, text: str) -> bool:
    prompt = Prompt("p", "?", None, {"generator": name, "entry": entry})
    return verifier(Completion(prompt, (), (), text, (), "stop"), answer="whole") == 1.0


def equal(one: str, other: str) -> bool:
    try:
        return one.lower() == other.lower() or float(one) == float(other)
    except ValueError:
        return False


def faults(name: str, entries: list[Row], compiled: list[str]) -> list[str]:
    """Return what is wrong with the verdicts on a generator's questions."""
    answers = [entry["answer"] for entry in entries]
    if any(answer is None for answer in answers):
        return ["no answer"]
    compiled.clear()
    verdict(name, entries[0], f"({MARK}+x)")
    if any(MARK in source for source in compiled):
        return ["evaluates the answer"]
    before = copy.deepcopy(entries)
    verify = get_verifier(name)
    stored = [json.loads(json.dumps(entry, default=str)) for entry in entries]
    pairs = [(entry, answers[index - step]) for index, entry in enumerate(entries) for step in (1, 2, 3)]
    different = [(entry, answer) for entry, answer in pairs if answer != entry["answer"]]
    accepted = sum(verdict(name, entry, answer) for entry, answer in different)
    tests = {
        "own answer": not all(verify(entry["answer"], entry) == 1.0 for entry in entries),
        "JSON": not all(verdict(name, entry, entry["answer"]) for entry in stored if entry["answer"].strip()),
        "empty text": any(verdict(name, entry, "") for entry in entries),
        "constant": any(
            verdict(name, entry, text) and not equal(text, entry["answer"]) for entry in entries for text in CONSTANTS
        ),
        "other answers": accepted > MOST_SHARED * len(different),
        "changes entries": before != entries,
    }
    return [fault for fault, present in tests.items() if present]


def measure(name: str, *, whole: bool, compiled: list[str]) -> Row:
    """Return a generator's questions and answers; if ``whole``, also its faults and its speed."""
    import numpy as np

    size = MANY.get(name, SLOW_ROWS if name in SLOW else ROWS)
    states = random.getstate(), np.random.get_state()[1:3]
    start = time.perf_counter()
    try:
        entries = generate_entries(name, {}, size, 0)
    except InputError as error:
        return {"made": [], "faults": [f"cannot be built: {error}"]}
    row: Row = {"made": [[entry["question"], entry["answer"]] for entry in entries], "faults": []}
    if not whole:
        return row
    row["seconds"] = (time.perf_counter() - start) / size
    if name not in SLOW:
        questions, others = (
            {entry["question"] for entry in each} for each in (entries, generate_entries(name, {}, size, 1))
        )
        row["distinct"], row["shared"] = len(questions), len(questions & others)
    row["faults"] = faults(name, entries[:ROWS], compiled)
    after = random.getstate(), np.random.get_state()[1:3]
    if states[0] != after[0] or not all(np.array_equal(*pair) for pair in zip(states[1], after[1], strict=True)):
        row["faults"].append("global random state")
    return row


def measure_all(*, whole: bool) -> dict[str, Row]:
    from reasoning_gym.factory import DATASETS

    compiled: list[str] = []
    sys.addaudithook(lambda event, values: compiled.append(str(values[0])) if event == "compile" else None)
    rows: dict[str, Row] = {}
    with TemporaryDirectory() as folder, chdir(folder):
        for name in sorted(DATASETS):
            rows[name] = measure(name, whole=whole, compiled=compiled)
            for path in Path(folder).iterdir():
                rows[name]["faults"].append(f"writes {path.name}")
                path.unlink()
    return rows


def compare() -> dict[str, Row]:
    """Return generator -> its row, from one process per hash seed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.generators", part],
            env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE,
        )
        for part, seed in zip(("--whole", "--questions"), HASH_SEEDS, strict=True)
    ]  # fmt: skip
    first, second = (json.loads(process.communicate()[0]) for process in processes)
    for name, row in first.items():
        if row.pop("made") != second[name]["made"]:
            row["faults"].append("hash seed")
    return dict(first)


def main(arguments: list[str]) -> None:
    if arguments in (["--whole"], ["--questions"]):
        with redirect_stdout(sys.stderr):
            rows = measure_all(whole=arguments == ["--whole"])
        json.dump(rows, sys.stdout)
        return
    rows = compare()
    if arguments == ["--json"]:
        json.dump(rows, sys.stdout)
        return
    print(f"{'generator':28}{'s/question':>10}{'distinct':>9}{'shared':>7}  faults")
    for name, row in rows.items():
        seconds = f"{row['seconds']:.4f}" if "seconds" in row else ""
        print(
            f"{name:28}{seconds:>10}{row.get('distinct', ''):>9}{row.get('shared', ''):>7}  {', '.join(row['faults'])}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
