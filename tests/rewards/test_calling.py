"""What reward functions print: kept away from standard output and the panel, and in a run in its folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from burnish.errors import BurnishError, InputError
from burnish.rewards import calling
from burnish.rewards.calling import outcomes, printing_to


def noisy() -> float:
    print("from Python")
    print("to standard error", file=sys.stderr)
    os.system("echo from a program")
    return 1.0


def test_what_a_function_prints_stays_out_of_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert outcomes([noisy], None, stop_early=True) == [1.0]
    out, err = capfd.readouterr()
    assert out == "" and {"from Python", "to standard error", "from a program"} <= set(err.splitlines())


def test_in_a_run_it_goes_to_the_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with printing_to(tmp_path):
        outcomes([lambda: 1.0], None, stop_early=True)
        assert not (tmp_path / "rewards.log").exists()
        outcomes([noisy, noisy], 5.0, stop_early=True)
    assert capfd.readouterr() == ("", "")
    lines = (tmp_path / "rewards.log").read_text().splitlines()
    assert lines == ["from Python", "to standard error", "from a program"] * 2
    print("afterwards")
    os.system("echo and programs")
    assert capfd.readouterr().out.split("\n")[:2] in (["afterwards", "and programs"], ["and programs", "afterwards"])


def test_the_log_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PRINTED_BYTES", 100)
    log = tmp_path / "rewards.log"
    with printing_to(tmp_path):
        for number in range(9):
            outcomes([lambda number=number: print(f"{number} " * 10)], None, stop_early=True)
    assert log.stat().st_size == 100
    assert log.read_text().startswith("0 0 0 0 0 0 0 0 0 0 \n1") and log.read_text().endswith(calling._FULL)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="POSIX only")
@pytest.mark.parametrize("make", [lambda log, other: log.symlink_to(other), lambda log, other: os.mkfifo(log)])
def test_nothing_is_printed_through_a_link_or_a_pipe(tmp_path: Path, make) -> None:
    (tmp_path / "run").mkdir()
    other = tmp_path / "other"
    other.write_text("kept")
    make(tmp_path / "run" / "rewards.log", other)
    with printing_to(tmp_path / "run"), pytest.raises(InputError, match=r"rewards\.log is not a regular file"):
        outcomes([noisy], None, stop_early=True)
    assert other.read_text() == "kept"


def test_an_error_of_burnish_passes_and_later_calls_are_not_made() -> None:
    made: list[int] = []

    def fails() -> float:
        raise BurnishError("already says what to do")

    with pytest.raises(BurnishError, match=r"^already says what to do$"):
        outcomes([fails], None, stop_early=True)
    assert isinstance(outcomes([lambda: 1 / 0, lambda: made.append(1)], None, stop_early=True)[0], ZeroDivisionError)
    assert not made
