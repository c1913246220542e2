"""The report of ``burnish doctor``: facts without torch, a short measurement, and slow products that are estimated."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.benchmark import doctor
from burnish.cli.app import app
from burnish.system import machine


def test_facts_need_no_torch() -> None:
    code = "import sys; from burnish.benchmark import doctor; doctor.facts(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_facts_are_printed_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["pytest>=8; extra == 'have'", "nix; extra == 'lack'", "rich>=1"]
    )
    monkeypatch.setattr(doctor, "gpus", lambda: ["NVIDIA H200"])

    def fail(long: bool) -> None:
        raise ValueError("measured")

    monkeypatch.setattr(doctor, "measure_speeds", fail)
    done = CliRunner().invoke(app, ["doctor"])
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith("not there"))
    assert str(done.exception) == "measured"
    assert lines["GPU"] == "NVIDIA H200" and lines["extras"] == "have"
    assert "not there    lack (pip install" in done.stdout
    assert {"processor", "memory", "disk", "packages", "cache", "model", "sandbox"} <= set(lines)


@pytest.mark.slow
def test_the_short_measurement_has_speeds_and_limits() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(done.stdout)
    assert [(one["dtype"], one["rows"], one["library"]) for one in report["products"]] == [
        ("float32", 32, "linear"), ("float32", 64, "linear"), ("float32", 2048, "linear"),
    ]  # fmt: skip
    large = report["products"][-1]["gflops"]
    # 6 operations per parameter and token.
    assert report["limit"]["training"] == pytest.approx(large * 1e9 / (6 * 134_515_008))
    assert report["torch_sees"] and report["sandbox"]


def test_a_product_that_is_too_slow_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def slow(inputs: object) -> object:
        calls.append(time.perf_counter())
        return inputs

    monkeypatch.setattr(machine, "LONGEST_PASS", -1.0)
    (seconds,) = machine._passes([(slow, None)] * 7, 5)  # type: ignore[list-item,arg-type]
    assert len(calls) == 1 and seconds > 0


def test_the_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "gpus" / "0000:01:00.0" / "information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 99\n")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "gpus")
    assert machine.gpus() == ["NVIDIA GeForce RTX 4090"]
