"""The live progress and the report read only metrics that a run writes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from burnish import api
from burnish.reports.page import charts, html
from burnish.reports.run_data import read_run
from burnish.reports.terminal.progress import JsonProgress, LiveProgress, PlainProgress, QuietProgress

TRAINING = [
    "steps=4",
    "evaluation.every=2",
    "evaluation.resamples=100",
    "algorithm.use=grpo",
    "algorithm.kl.coefficient=0.1",
]
"""A toy run that writes the metrics of the KL term and held-out measurements too."""


class Row(dict[str, Any]):
    """A row of metrics that records the keys that are read from it."""

    def __init__(self, metrics: dict[str, Any], keys: set[str]) -> None:
        super().__init__(metrics)
        self._keys = keys

    def __getitem__(self, key: str) -> Any:
        self._keys.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._keys.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._keys.add(str(key))
        return super().__contains__(key)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "run"
    api.train("toy", overrides=TRAINING, run_dir=folder, observer=QuietProgress())
    return folder


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_progress_reads_only_metrics_of_a_step(run_folder: Path) -> None:
    rows, keys = written(run_folder, "metrics.jsonl"), set[str]()
    for observer in (
        PlainProgress(io.StringIO()),
        JsonProgress(io.StringIO()),
        LiveProgress(Console(file=io.StringIO()), auto_refresh=False),
    ):
        observer.start(name="toy", steps=len(rows), first_step=1)
        for row in rows:
            observer.step(Row(row, keys))
        if isinstance(observer, LiveProgress):
            observer.render()
        observer.finish()
    assert {"reward/mean", "kl", "entropy", "length/mean"} <= keys
    # The trainer adds the time left; the time of other programs is in rows of steps that take over a second.
    assert keys - {"time/left", "time/others"} <= {key for row in rows for key in row}


@pytest.mark.slow
def test_charts_and_table_read_only_written_metrics(run_folder: Path) -> None:
    metrics = {key for row in written(run_folder, "metrics.jsonl") for key in row}
    held_out = {f"held_out/{key}" for row in written(run_folder, "held_out.jsonl") for key in row} - {"held_out/step"}
    run, keys = read_run(run_folder), set[str]()
    sections = charts.chart_sections([Row(row, keys) for row in run.rows], run.evaluation)
    assert {"reward/mean", "held_out/reward", "time/step", "memory/peak"} <= keys
    assert keys <= metrics | held_out
    assert {key for key, _ in html._COLUMNS} <= metrics | held_out
    titles = [chart.title for section in sections for chart in section.charts]
    reward = next(chart for section in sections for chart in section.charts if chart.title == "Reward")
    assert [trace["x"] for trace in reward.figure["data"] if trace["name"] == "held-out"] == [[0, 2, 4]]
    assert {"KL to the reference", "Clipped fraction", "Gradient norm", "Seconds per step"} <= set(titles)
