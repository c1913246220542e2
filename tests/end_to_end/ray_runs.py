"""What tests of runs on a Ray cluster share: short runs, their rows, and their processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import burnish
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable, read_lines
from tests.fakes import RecordingObserver

RAY = ["backend.use=ray", "backend.cpus=1"]
LEARNERS = [*RAY, "backend.learners=2"]


def train(recipe: str | Path, folder: Path, *overrides: str, observer: Any = None) -> Any:
    quiet = observer or make_observer(quiet=True)
    return burnish.train(recipe, run_dir=folder, observer=quiet, overrides=overrides)


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return list(read_lines(run / name))


def actors(kind: str) -> list[int]:
    """Return the processes of this process's actors of a class."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            found += [child.pid] if any(kind in part for part in child.cmdline()) else []
    return sorted(found)


def samplers() -> list[int]:
    return actors("SamplerProcess")


def learners() -> list[int]:
    """Return the processes of the learners other than this process."""
    return actors("LearnerProcess")


def assert_near(ours: Path, theirs: Path) -> None:
    """Compare metrics and evaluation to 1e-6."""
    for mine, other in zip(rows(ours), rows(theirs), strict=True):
        assert comparable(mine) == pytest.approx(comparable(other), rel=1e-6, abs=1e-6)
    before_after = [json.loads((run / "evaluation.json").read_text(encoding="utf-8")) for run in (ours, theirs)]
    for key in ("before", "after"):
        mine, other = ({name: one[key] for name, one in measured.items()} for measured in before_after)
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-6)


class Killer(RecordingObserver):
    """An observer that kills a sampler, or another of these processes, after some steps."""

    def __init__(self, processes: Callable[[], list[int]] = samplers) -> None:
        super().__init__()
        self.processes = processes

    def step(self, metrics: Mapping[str, Any]) -> None:
        super().step(metrics)
        if metrics["step"] in (1, 3):
            os.kill(self.processes()[-1], signal.SIGKILL)
