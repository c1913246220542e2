"""The training loop: failing steps, alarms, warnings and Ctrl-C during a measurement."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import burnish.training.reinforcement
import burnish.training.step
import burnish.training.trainer
from burnish.api import train
from burnish.errors import BurnishError, InputError
from burnish.reports.run_data import read_run
from burnish.run.folder import comparable, read_lines
from burnish.run.interrupts import Interrupted
from tests.fakes import InterruptingObserver, RecordingObserver
from tests.fakes import train_toy as toy

CALLS = {"count": 0}


def breaks_at_the_seventh(text: str) -> float:
    """Fail in step 7: 32 held-out samples are scored before training, then 8 samples per step."""
    CALLS["count"] += 1
    if CALLS["count"] == 32 + 8 * 6 + 1:
        raise ValueError("out of luck")
    return float(text.count("我"))


@pytest.mark.slow
def test_a_failing_step_keeps_the_steps_before_it(tmp_path: Path) -> None:
    CALLS["count"] = 0
    with pytest.raises(BurnishError, match=r"out of luck[^\n]*\nsaved after step 6; resume with: burnish"):
        toy(tmp_path / "run", "steps=9", "checkpoint.every=100", rewards={breaks_at_the_seventh: 1.0})
    assert (tmp_path / "run" / "checkpoints" / "step-6" / "state.json").exists()
    # The seventh step succeeds the second time, and the run equals one that never failed.
    done = train(resume=tmp_path / "run", observer=RecordingObserver())
    CALLS["count"] = 10**6
    whole = toy(tmp_path / "whole", "steps=9", "checkpoint.every=100", rewards={breaks_at_the_seventh: 1.0})
    assert [comparable(row) for row in done.metrics] == [comparable(row) for row in whole.metrics]


@pytest.mark.slow
def test_a_step_that_fails_between_updates_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["steps=6", "checkpoint.every=2", "algorithm.use=grpo", "algorithm.epochs=2"]
    whole = toy(tmp_path / "whole", *options)
    refuse = burnish.training.step.refuse_non_finite

    def fails(step: int, loss: float, norm: float, *, update: int) -> None:
        refuse(step, float("nan") if (step, update) == (4, 2) else loss, norm, update=update)

    monkeypatch.setattr(burnish.training.step, "refuse_non_finite", fails)
    with pytest.raises(BurnishError, match=r"step 4, update 2: the loss is nan[^\n]*\nsaved after step 2; resume with"):
        toy(tmp_path / "run", *options)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    done = train(resume=tmp_path / "run", observer=RecordingObserver())
    assert [comparable(row) for row in done.metrics] == [comparable(row) for row in whole.metrics]


@pytest.mark.slow
def test_ctrl_c_during_a_measurement_keeps_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["steps=6", "checkpoint.every=100", "evaluation.every=2"]
    whole = toy(tmp_path / "whole", *options)
    measure, calls = burnish.training.reinforcement.measure, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(named["policy_version"])
        if calls == [0, 2, 4]:
            raise KeyboardInterrupt
        return measure(*arguments, **named)

    monkeypatch.setattr(burnish.training.reinforcement, "measure", interrupted)
    with pytest.raises(Interrupted, match="saved after step 4"):
        toy(tmp_path / "run", *options)
    done = train(resume=tmp_path / "run", observer=RecordingObserver())
    # The resumed process measures step 4; the last step is measured only once, as "after".
    assert calls == [0, 2, 4, 4, 6]
    held_out = [list(read_lines(tmp_path / name / "held_out.jsonl")) for name in ("run", "whole")]
    assert held_out[0] == held_out[1] and [row["step"] for row in held_out[0]] == [2, 4]
    assert [comparable(row) for row in done.metrics] == [comparable(row) for row in whole.metrics]
    assert done.evaluation == whole.evaluation


@pytest.mark.parametrize(("metric", "choose"), [("held_out/reward", max), ("held_out/perplexity", min)])
def test_the_best_measured_model_is_kept(tmp_path: Path, metric: str, choose: Any) -> None:
    options = ["steps=12", "checkpoint.every=100", "checkpoint.keep=1", "evaluation.every=2"]
    done = toy(tmp_path / "run", *options, f"checkpoint.keep_best={metric}", "optimizer.learning_rate=3.0")
    name = metric.removeprefix("held_out/")
    values = {row["step"]: row[name] for row in read_lines(done.run_dir / "held_out.jsonl")}
    values[12] = done.evaluation[name]["after"]
    best = choose(values, key=values.__getitem__)
    assert (done.run_dir / "model_best").resolve() == (done.run_dir / f"checkpoints/step-{best}/model").resolve()
    assert {path.name for path in (done.run_dir / "checkpoints").iterdir()} == {f"step-{best}", "step-12"}
    assert (done.run_dir / "model").resolve().parent.name == "step-12"


def test_the_best_model_by_what_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set evaluation\.every"):
        toy(tmp_path / "none", "checkpoint.keep_best=held_out/reward")
    for name in ("length", "rewrad"):
        with pytest.raises(
            InputError, match=f'keep_best = "held_out/{name}": this run does not measure it, or .* known'
        ):
            toy(tmp_path / name, "evaluation.every=2", f"checkpoint.keep_best=held_out/{name}", "steps=2")
        assert not (tmp_path / name).exists(), "it would block the corrected recipe"


def returns_nothing(text: str) -> None:
    """Lack a return."""


def test_bad_input_does_not_delete_a_run_that_is_resumed(tmp_path: Path) -> None:
    options = ["evaluation.every=2", "checkpoint.keep_best=held_out/reward", "steps=2"]

    class Impatient(RecordingObserver):
        def start(self, **_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        toy(tmp_path / "run", *options, observer=Impatient())
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("held_out/reward", "held_out/rewrad"))
    (tmp_path / "run" / "recipes.json").unlink()  # as of an earlier version, of which an edit is not noticed
    with pytest.raises(InputError, match="this run does not measure it"):
        train(resume=tmp_path / "run", observer=RecordingObserver())
    assert recipe.exists()


def test_resuming_is_advised_only_where_it_can_work(tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="returned None for all of them; is a return missing") as failed:
        toy(tmp_path / "run", rewards={returns_nothing: 1.0})
    assert "resume" not in str(failed.value)

    @burnish.reward(name="unreadable", read_answer=lambda text: text[99])
    def unreadable(text: str) -> float:
        return 0.0

    votes = ["evaluation.samples_per_prompt=2", "evaluation.correct=unreadable", "evaluation.maj_at=[2]"]
    with pytest.raises(BurnishError, match="'unreadable' cannot read an answer: IndexError") as failed:
        toy(tmp_path / "votes", *votes, rewards="unreadable")
    assert "resume" not in str(failed.value)
    calls = itertools.count()

    def returns_nothing_later(text: str) -> float | None:
        """Return nothing from step 3 on: 32 held-out samples are scored before training, then 8 samples per step."""
        return 1.0 if next(calls) < 32 + 8 * 2 else None

    with pytest.raises(BurnishError, match="saved after step 2; correct it, then resume with: "):
        toy(tmp_path / "later", rewards={returns_nothing_later: 1.0})


def length(text: str) -> float:
    return float(len(text))


def often(text: str) -> float | None:
    return None if CALLS["count"] else float(text.count("我"))


def test_the_best_model_by_a_metric_that_the_last_measurement_lacks(tmp_path: Path) -> None:
    CALLS["count"] = 0

    class Observer(RecordingObserver):
        def step(self, metrics: Any) -> None:
            CALLS["count"] += metrics["step"] == 4

    options = ["steps=4", "evaluation.every=2", "checkpoint.keep_best=held_out/reward/often"]
    done = toy(tmp_path / "run", *options, rewards={length: 1.0, often: 1.0}, observer=Observer())
    assert (done.run_dir / "model_best").resolve().parent.name == "step-2"


def test_a_measurement_with_an_alarm_is_not_the_best_where_alarms_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = {"gamed": "the reward rose, the text did not"}
    monkeypatch.setattr(burnish.training.reinforcement, "guard_alarms", lambda evaluation, **_: alarm)
    options = ["steps=4", "evaluation.every=2", "guards.stop=true", "checkpoint.keep_best=held_out/reward"]
    done = toy(tmp_path / "run", *options, "optimizer.learning_rate=1.0")
    assert (done.run_dir / "model").resolve() == (done.run_dir / "model_best").resolve()
    assert (done.run_dir / "model").resolve().parent.name == "step-0"


def test_an_earlier_warning_does_not_silence_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = RecordingObserver()
    monkeypatch.setattr(burnish.training.reinforcement, "WARNING_STEPS", 1)
    monkeypatch.setattr(
        burnish.training.reinforcement,
        "diversity_alarm",
        lambda history, **named: "gamed" if len(history) > 5 else None,
    )
    toy(tmp_path / "run", "steps=8", observer=observer, rewards={"repetition": 0.0, "exact": 1e-9})
    monkeypatch.undo()
    rows = list(read_lines(tmp_path / "run" / "warnings.jsonl"))
    assert "gamed" in observer.warnings and observer.warnings.count("gamed") == 1
    assert [row["step"] for row in rows if row["kind"] == "diversity"] == [6]
    assert json.dumps(rows).count("same reward") <= 1


def test_a_gate_that_never_opens_is_reported_and_counted(tmp_path: Path) -> None:
    gated = [
        {"use": "exact"},
        {"use": "repetition", "name": "shut", "weight": 0.0, "gate": 2.0},
        {"use": "length_band", "name": "open", "weight": 0.0, "gate": -1.0},
        {"use": "repetition", "name": "fading", "schedule": {"start": 1.0, "end": 0.0, "steps": 3}},
    ]
    observer = RecordingObserver()
    done = toy(tmp_path / "run", "steps=6", observer=observer, reward=gated)
    rows = list(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert [row["gate/shut"] for row in rows] == [0.0] * 6 and [row["gate/open"] for row in rows] == [1.0] * 6
    assert [row["weight/fading"] for row in rows] == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0] and "weight/exact" not in rows[0]
    (text,) = [text for text in observer.warnings if "gate" in text]
    assert text.startswith("no sample of the last 5 steps reached the gate of 'shut'") and "lower the gate" in text
    assert "Gate: shut" in done.report.read_text(encoding="utf-8")


def test_gates_and_weights_are_counted_with_refills(tmp_path: Path) -> None:
    parts = [
        {"use": "exact"},
        {"use": "length_band", "name": "g", "weight": 0.0, "gate": 0.5, "low": 1, "high": 3},
        {"use": "repetition", "name": "fading", "schedule": {"start": 1.0, "end": 0.0, "steps": 3}},
    ]
    toy(tmp_path / "run", "steps=6", "algorithm.use=dapo", reward=parts)
    rows = list(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert len(rows) == 6 and all("gate/g" in row and "weight/fading" in row for row in rows)


@pytest.mark.slow
def test_warnings_before_the_first_step_are_recorded(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    # Every row has its own words: near-copies would all be on one side of the split.
    rows = [f"word{i} and word{i + 500},answer{i}" for i in range(200)]
    data.write_text("prompt,answer\n" + "\n".join(rows) + "\nbroken\n,empty\n", encoding="utf-8")
    task = {"use": "data", "path": str(data), "reference": "answer", "chat": False}
    small = ["policy.use=lstm", "policy.lstm={embedding=4, hidden=4}", "steps=2"]
    observer = RecordingObserver()
    with pytest.raises(InputError, match="2 of 202 rows"):
        toy(tmp_path / "refused", *small, "task.max_broken=0.001", task=task)
    assert not (tmp_path / "refused").exists()
    done = toy(tmp_path / "run", *small, observer=observer, task=task)
    broken = list(read_lines(tmp_path / "run" / "broken_rows.jsonl"))
    assert [row["place"] for row in broken] == ["line 202", "line 203"] and "1 fields where" in broken[0]["reason"]
    (warning,) = [row for row in read_lines(tmp_path / "run" / "warnings.jsonl") if row["kind"] == "start"]
    assert warning["step"] == 0 and warning["text"] in observer.warnings and "2 of 202 rows" in warning["text"]
    page = done.report.read_text(encoding="utf-8")
    assert "2 of 202 rows" in page and "at the start" in page
    train(resume=tmp_path / "run", observer=RecordingObserver())
    warnings = tmp_path / "run" / "warnings.jsonl"
    assert sum(row["kind"] == "start" for row in read_lines(warnings)) == 1
    # Killed in the middle of a line, and resumed with changed data.
    with open(warnings, "a", encoding="utf-8") as file:
        file.write('{"step": 2, "kind": "cut o')
    data.write_text("prompt,answer\n" + "\n".join(rows) + "\nbroken\n", encoding="utf-8")
    train(resume=tmp_path / "run", observer=RecordingObserver(), accept_changed_inputs=True)
    assert [row["kind"] for row in read_lines(warnings)].count("start") == 2
    assert [row["place"] for row in read_lines(tmp_path / "run" / "broken_rows.jsonl")] == ["line 202"]
    data.write_text("prompt,answer\n" + "\n".join(rows) + "\n", encoding="utf-8")
    train(resume=tmp_path / "run", observer=RecordingObserver(), accept_changed_inputs=True)
    assert not (tmp_path / "run" / "broken_rows.jsonl").exists()


@pytest.mark.slow
def test_a_resume_in_another_environment_warns(tmp_path: Path) -> None:
    toy(tmp_path / "run", "steps=2")
    same = RecordingObserver()
    train(resume=tmp_path / "run", observer=same)
    assert not any("environment has changed" in text for text in same.warnings)
    path = tmp_path / "run" / "environment.json"
    then = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**then, "threads": then["threads"] + 1, "torch": "1.0"}), encoding="utf-8")
    other = RecordingObserver()
    train(resume=tmp_path / "run", observer=other)
    (text,) = [text for text in other.warnings if "environment has changed" in text]
    assert f"threads {then['threads'] + 1} -> {then['threads']}" in text and "torch 1.0 -> " in text
    assert "numpy" not in text
    path.write_text("[", encoding="utf-8")
    broken = RecordingObserver()
    train(resume=tmp_path / "run", observer=broken)
    assert any("cannot be read" in text for text in broken.warnings)


class TestReport:
    @pytest.mark.parametrize("share, written", [(math.inf, [2, 4, 5]), (1e-12, [2, 5])])
    def test_it_is_written_at_checkpoints_if_that_is_quick_and_its_path_is_printed_first(
        self, share: float, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(burnish.training.trainer, "REPORT_SHARE", share)
        seen: list[int] = []
        monkeypatch.setattr(
            burnish.training.trainer, "write_report", lambda folder: seen.append(read_run(folder).steps_done)
        )
        observer = RecordingObserver()
        toy(tmp_path / "run", "steps=5", "checkpoint.every=2", observer=observer)
        assert seen == written
        line = ("message", "info", f"report: {tmp_path / 'run' / 'report.html'}, written at checkpoints")
        assert observer.calls.index(line) < observer.calls.index(("start", "toy"))

    def test_a_run_that_is_stopped_has_one_of_its_steps_so_far(self, tmp_path: Path) -> None:
        with pytest.raises(Interrupted):
            toy(tmp_path / "run", "steps=9", "checkpoint.every=100", observer=InterruptingObserver(after_step=3))
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert "The run has made 3 of 9 steps." in page and "Missing from this report" not in page

    def test_one_that_fails_is_a_message_and_changes_no_bit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(folder: Path) -> None:
            raise ValueError("no ink")

        whole = toy(tmp_path / "whole", "steps=4", "checkpoint.every=100")
        monkeypatch.setattr(burnish.training.trainer, "write_report", fail)
        observer = RecordingObserver()
        done = toy(tmp_path / "run", "steps=4", "checkpoint.every=1", observer=observer)
        assert observer.texts.count("the report was not written: no ink") == 1
        assert [comparable(row) for row in done.metrics] == [comparable(row) for row in whole.metrics]


def test_a_long_run_says_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burnish.training.reinforcement.HeldOutEvaluator, "guess_step", lambda *_: 30.0)
    observer = InterruptingObserver(after_step=2)
    with pytest.raises(Interrupted):
        toy(tmp_path / "run", "steps=6", observer=observer)
    (text,) = (text for text in observer.texts if "will take" in text)
    assert re.fullmatch(r"6 steps will take about 3\.0 min, measuring \d s", text)
    # A resumed run goes by its own steps. It has not measured.
    path = tmp_path / "run" / "metrics.jsonl"
    rows = [{**row, "time/step": 600.0} for row in read_lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    observer = RecordingObserver()
    train(resume=tmp_path / "run", observer=observer)
    assert "4 steps will take about 40 min, without measuring" in observer.texts


def test_a_short_run_says_nothing_of_its_duration(tmp_path: Path) -> None:
    observer = RecordingObserver()
    toy(tmp_path / "run", "steps=1", observer=observer)
    assert not any("will take" in text for text in observer.texts)
