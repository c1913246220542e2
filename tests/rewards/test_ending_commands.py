"""Rewards that end the process, or change it, on the real command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import reward_function
from tests.rewards.completions import answer

FAULTS = """
import asyncio, os, sys
calls = 0

def exits(text):
    global calls
    calls += 1
    if calls > 64:  # the measurement before, and one step
        sys.exit(0)
    return float(len(set(text)))

async def exits_async(text):
    raise SystemExit(0)

def exits_in_score(texts):
    sys.exit(0)

def exits_at_once(text):
    os._exit(0)

def stops(text):
    raise KeyboardInterrupt

def strict(text):
    import warnings
    sys.stderr = open(os.devnull, "w")
    warnings.simplefilter("error")
    return 1.0
"""


def burnish(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300"}
    command = [sys.executable, "-m", "burnish", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_exit_0_in_a_reward_is_a_failure_and_the_run_is_saved(tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    recipe = 'name = "toy"\nsteps = 4\n[policy]\nuse = "tabular"\n[task]\nuse = "toy"\n[algorithm]\nuse = "rloo"\n'
    sampling = "[sampling]\nprompts_per_step = 4\nsamples_per_prompt = 8\nmax_new_tokens = 4\n"
    (tmp_path / "r.toml").write_text(recipe + sampling + '[[reward]]\nuse = "faults:exits"\n')
    done = burnish(tmp_path, "train", "r.toml", "--run-dir", "run", "--set", "evaluation.prompts=16")
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("burnish: ")]
    assert len(lines) == 2 and "reward 'exits' raised SystemExit: 0" in lines[0] and "faults.py, line 9" in lines[0]
    assert "saved after step" in lines[1] and "resume with: burnish train --resume run" in lines[1]
    assert "Traceback" not in done.stderr and any((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("name", "raised"),
    [
        ("exits_async", "SystemExit: 0"),
        ("exits_in_score", "SystemExit: 0"),
        ("stops", "KeyboardInterrupt"),
        ("exits_at_once", "RuntimeError: os._exit(0)"),
    ],
)
def test_so_is_it_in_score(tmp_path: Path, name: str, raised: str) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    done = burnish(tmp_path, "score", "text", "--use", f"faults:{name}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"burnish: reward '{name}' raised {raised}") and done.stderr.count("\n") == 1


def test_a_file_that_is_freed_is_no_error_to_a_reward_that_made_warnings_errors(tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    done = burnish(tmp_path, "score", "one", "two", "--use", "faults:strict")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_processes_that_a_reward_forks_leave_as_ever() -> None:
    def forks(text: str) -> float:
        child = os.fork()
        if child == 0:
            os._exit(7)
        return float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    real = os._exit
    assert Combination([Part("mine", reward_function("mine", forks))]).score([answer()]).total.tolist() == [7.0]
    assert os._exit is real
