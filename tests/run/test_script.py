"""The printed command resumes a run whose rewards a script gave in Python."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.api import train
from burnish.errors import InputError
from burnish.rewards.registry import REWARDS
from burnish.run import script
from burnish.run.checkpoint import Checkpointer
from tests.fakes import RecordingObserver

SCRIPT = """
import functools
import sys
import burnish

def length(text, n):
    print("noise")
    if sys.argv[1:] == ["break"] and burnish.BROKEN:
        raise RuntimeError("broken")
    return len(text) / n

class Stop:
    def __getattr__(self, name):
        return lambda *args, **options: None
    def step(self, metrics):
        if metrics["step"] == 2:
            raise KeyboardInterrupt

if __name__ == "__main__":
    rewards = [functools.partial(length, n=2), functools.partial(length, n=9), lambda text: 0.5]
    burnish.train("toy", rewards=rewards, steps=4, run_dir="my run", observer=Stop())
"""


@pytest.mark.slow
def test_the_printed_command_resumes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.replace(" and burnish.BROKEN", " and False"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=120
        )

    begun = run(sys.executable, "train.py", "an argument")
    printed = begun.stderr.strip().rpartition("resume with: ")[2].splitlines()[0]
    assert shlex.split(printed) == ["burnish", "train", "--resume", "my run", "--script", "train.py 'an argument'"]
    resumed = run(sys.executable, "-m", *shlex.split(printed), "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert "noise" not in resumed.stdout and "noise" in (tmp_path / "my run" / "rewards.log").read_text()
    assert len((tmp_path / "my run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("raise SystemExit('usage')", "raised SystemExit: usage"),
        ("x = 1", "does not call burnish.train"),
        ("open('missing.csv')", "raised FileNotFoundError: .*missing.csv"),
        (None, "cannot be read"),
    ],
)
def test_a_script_without_rewards_is_refused(names, tmp_path: Path, source: str | None, message: str) -> None:
    if source is not None:
        (tmp_path / "a.py").write_text(source)
    with pytest.raises(InputError, match=message):
        script.collect_rewards(str(tmp_path / "a.py"))


def test_a_script_that_would_train_again_is_refused_and_not_advised(names, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.py").write_text("import burnish\nburnish.sft('news_sft')\nburnish.train('toy', rewards=len)")
    with pytest.raises(InputError, match=r"it calls burnish\.sft before burnish\.train, which would train again"):
        script.collect_rewards(str(tmp_path / "a.py"))
    monkeypatch.setattr(script, "_running_script", lambda: "a.py")
    used = [(REWARDS, "no lasting name")]
    monkeypatch.setattr(script, "_supervised", False)
    assert script.resume_command(tmp_path, "train", used).endswith("--script a.py")
    script.note_supervised("sft")
    assert script.resume_command(tmp_path, "train", used).startswith("burnish.train(resume=")


def test_a_script_is_executed_up_to_its_training(names, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import sys, burnish\nburnish.train('toy', rewards=lambda text: len(sys.argv))\n1 / 0"
    )
    script.collect_rewards(f"{tmp_path}/a.py one two")
    assert "lambda" in REWARDS
    with pytest.raises(InputError, match="there is no such module"):
        script.collect_rewards("-m no_such_module_anywhere")


def test_functions_may_be_given_again_to_resume(names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(text: str) -> float:
        return len(text) / 9

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", lambda self: (_ for _ in ()).throw(InputError("full")))
        with pytest.raises(InputError):
            train("toy", rewards=mine, steps=1, run_dir=tmp_path / "run", observer=RecordingObserver())
    monkeypatch.setattr(REWARDS, "_entries", {})
    with pytest.raises(
        InputError, match=r"a resumed run keeps its rewards, {'mine': 1.0}: give these, not {'bleu': 1.0}"
    ):
        REWARDS.add("mine", REWARDS.get("bleu"))
        train(resume=tmp_path / "run", rewards="bleu")
    monkeypatch.setattr(REWARDS, "_entries", {})
    assert len(train(resume=tmp_path / "run", rewards=[mine], observer=RecordingObserver()).metrics) == 1
