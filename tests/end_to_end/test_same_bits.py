"""One recipe and seed give the same bits: in a second run, and in a run that is killed at any moment and resumed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import burnish
from burnish.recipe.schema import RECIPES
from burnish.reports.terminal.progress import make_observer

TOY_STEPS = 40
LORA = "\n[policy.lora]\nrank = 4\n"


def train(recipe, folder: Path, **changes):
    return burnish.train(recipe, run_dir=folder, observer=make_observer(quiet=True), **changes)


EVERYTHING = [
    "algorithm.use=dapo",
    "algorithm.kl={coefficient = 0.05, target = 0.5, reset_every = 3}",
    "algorithm.entropy=0.01",
    "algorithm.epochs=2",
    "algorithm.minibatches=2",
    "algorithm.importance={form = 'truncate', level = 'sequence'}",
    "algorithm.overlong.weight=0.1",
]
"""Every setting that keeps state from step to step."""


class TestTwice:
    def test_toy(self, tmp_path, traces):
        runs = [train("toy", tmp_path / name, steps=TOY_STEPS, seed=3) for name in ("a", "b")]
        other = train("toy", tmp_path / "c", steps=TOY_STEPS, seed=4)
        first, second, third = (traces(run.run_dir) for run in (*runs, other))
        assert first == second
        assert len(first["metrics"]) == TOY_STEPS
        for name in ("metrics", "samples.jsonl", "model/model.safetensors", "evaluation/before.json"):
            assert first[name] != third[name], name

    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    @pytest.mark.parametrize("lora", ["", LORA], ids=["full", "lora"])
    def test_tiny_language_model(self, workspace, tiny_recipe, traces, monkeypatch, lora, kind):
        monkeypatch.chdir(workspace.folder)
        path = workspace.write("tiny.toml", tiny_recipe(kind, steps=4, extra=lora))
        first, second = (traces(train(path, workspace / name).run_dir) for name in ("a", "b"))
        third = traces(train(path, workspace / "c", seed=1).run_dir)
        assert first == second
        assert first["metrics"][-1]["grad_norm"] > 0
        assert all(row["mismatch_kl"] < 1e-5 for row in first["metrics"])
        weights = "model/adapter_model.safetensors" if lora else "model/model.safetensors"
        for name in ("metrics", "samples.jsonl", weights, "optimizer.safetensors"):
            assert first[name] != third[name], name

    def test_a_resumed_run_equals_an_uninterrupted_one(self, workspace, tiny_recipe, traces, monkeypatch):
        """A reward that raises stops the run, which resumes once the reward works."""
        monkeypatch.chdir(workspace.folder)
        path = workspace.write("tiny.toml", tiny_recipe(steps=6))
        whole = traces(train(path, workspace / "whole").run_dir)
        from burnish.rewards.library import diversity

        repeat_share, calls = diversity.repeat_share, []

        def breaks(tokens):
            calls.append(1)
            if len(calls) == 250:
                raise burnish.BurnishError("stopped on purpose")
            return repeat_share(tokens)

        monkeypatch.setattr("burnish.evaluation.guards.repeat_share", breaks)
        stopped = 0
        try:
            train(path, workspace / "part")
        except burnish.BurnishError:
            stopped += 1
        calls[:] = range(1000)
        resumed = burnish.train(resume=workspace / "part", observer=make_observer(quiet=True))
        assert traces(resumed.run_dir) == whole

    @pytest.mark.slow
    @pytest.mark.parametrize("lora", ["", LORA], ids=["full", "lora"])
    def test_a_checkpoint_has_the_whole_state_of_the_algorithm(self, workspace, tiny_recipe, traces, monkeypatch, lora):
        """Resume after steps 2 and 4 with an adapted KL coefficient, a reset reference and several updates per step."""
        monkeypatch.chdir(workspace.folder)
        text = tiny_recipe(steps=6, extra=lora).replace("[checkpoint]", "[checkpoint]\nkeep = 9")
        whole = train(workspace.write("tiny.toml", text), workspace / "whole", overrides=EVERYTHING).run_dir
        expected = traces(whole)
        coefficients = {row["kl/coefficient"] for row in expected["metrics"]}
        assert len(coefficients) > 3, "the coefficient adapts"
        assert "anchor.safetensors" in expected
        for step in (4, 2):
            run = shutil.copytree(whole, workspace / f"part-{step}", symlinks=True)
            for later in range(step + 1, 7):
                shutil.rmtree(run / "checkpoints" / f"step-{later}", ignore_errors=True)
            (run / "model").unlink()
            burnish.train(resume=run, observer=make_observer(quiet=True))
            assert {**traces(run), "checkpoints": ()} == {**expected, "checkpoints": ()}

    def test_resuming_a_finished_run_changes_nothing(self, tmp_path, traces):
        run = train("toy", tmp_path / "a", steps=10).run_dir
        before = traces(run)
        burnish.train(resume=run, observer=make_observer(quiet=True))
        assert traces(run) == before

    def test_without_its_newest_checkpoint_a_run_resumes_from_the_one_before(self, tmp_path, traces):
        text = (RECIPES / "toy.toml").read_text(encoding="utf-8").replace("every = 50", "every = 4")
        (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
        run = train(tmp_path / "toy.toml", tmp_path / "a", steps=12).run_dir
        whole = traces(run)
        shutil.rmtree(run / "checkpoints" / "step-12")
        (run / "model").unlink()
        burnish.train(resume=run, observer=make_observer(quiet=True))
        assert traces(run) == whole

    def test_the_link_to_the_model_is_repaired(self, tmp_path, traces):
        """A kill may happen between the last checkpoint and the link."""
        run = train("toy", tmp_path / "a", steps=5).run_dir
        whole = traces(run)
        (run / "model").unlink()
        (run / "model").symlink_to("checkpoints/step-3/model")
        (run / "checkpoints" / ".step-3.partial").mkdir()
        burnish.train(resume=run, observer=make_observer(quiet=True))
        assert traces(run) == whole


class Watch:
    """Waits for moments in the life of a run in another process."""

    def __init__(self, run: Path, process) -> None:
        self.run, self.process = run, process

    def until(self, condition: Callable[[], bool]) -> bool:
        """False where the process ended before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.0005)
        return True

    def lines(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def has(self, pattern: str) -> bool:
        return any(True for _ in self.run.glob(pattern))


def moments(steps: int, chance: random.Random) -> dict[str, Callable[[Watch], bool]]:
    """Five moments to be killed at; where exactly within them is the generator's choice."""
    early, late = chance.randrange(1, steps // 2), chance.randrange(steps // 2, steps)
    return {
        "while the policy is measured before training": lambda watch: watch.has("recipe.toml"),
        "in an early step": lambda watch: watch.lines() >= early,
        "while a checkpoint is written": lambda watch: watch.lines() >= early and watch.has("checkpoints/.*.partial"),
        "in a late step": lambda watch: watch.lines() >= late,
        "while it is measured after training": lambda watch: watch.has(f"checkpoints/step-{steps}"),
    }


def killed_and_resumed(workspace, recipe: str, steps: int, seed: int) -> Path:
    run, chance = workspace / "killed", random.Random(seed)
    arguments = ["train", recipe, "--run-dir", run]
    kills = 0
    for name, reached in moments(steps, chance).items():
        process = workspace.fork(*arguments, "--quiet")
        watch = Watch(run, process)
        if watch.until(lambda reached=reached, watch=watch: reached(watch)):
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        workspace.finish(process)
        if (run / "recipe.toml").exists():
            arguments = ["train", "--resume", run]
        assert not (run / "evaluation.json").exists(), f"{name}: the run had already finished"
    assert kills == 5
    finished = workspace.ask("train", "--resume", run, "--quiet")
    assert (finished.status, finished.err) == (0, "")
    return run


@pytest.mark.slow
class TestKilled:
    def test_toy(self, workspace, traces):
        text = (RECIPES / "toy.toml").read_text(encoding="utf-8").replace("every = 50", "every = 7")
        path = workspace.write("toy.toml", text.replace("steps = 150", "steps = 120"))
        whole = train(path, workspace / "whole").run_dir
        assert traces(killed_and_resumed(workspace, "toy.toml", 120, seed=0)) == traces(whole)

    @pytest.mark.parametrize("lora", ["", LORA], ids=["full", "lora"])
    def test_tiny_language_model(self, workspace, tiny_recipe, traces, monkeypatch, lora):
        monkeypatch.chdir(workspace.folder)
        path = workspace.write("tiny.toml", tiny_recipe(steps=16, extra=lora))
        whole = train(path, workspace / "whole").run_dir
        assert traces(killed_and_resumed(workspace, "tiny.toml", 16, seed=5)) == traces(whole)


@pytest.mark.slow
class TestInterrupted:
    """Ctrl-C and SIGTERM, with the run resumed in this process."""

    @staticmethod
    def equal_but_for_checkpoints(ours: dict, theirs: dict) -> bool:
        # Ctrl-C wrote an extra checkpoint.
        return {**ours, "checkpoints": ()} == {**theirs, "checkpoints": ()}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_saves_and_prints_how_to_resume(self, workspace, tiny_recipe, traces, monkeypatch, number):
        monkeypatch.chdir(workspace.folder)
        text = tiny_recipe(steps=16).replace("[checkpoint]\nevery = 2", "[checkpoint]\nevery = 100")
        path = workspace.write("tiny.toml", text)
        process = workspace.fork("train", "tiny.toml", "--run-dir", "run", "--quiet")
        watch = Watch(workspace / "run", process)
        assert watch.until(lambda: watch.lines() >= 3)
        process.send_signal(number)
        stopped = workspace.finish(process)
        assert stopped.status == 128 + number
        assert len(stopped.lines) == 1
        assert "resume with: burnish train --resume run" in stopped.err
        saved = [path.name for path in (workspace / "run" / "checkpoints").iterdir()]
        assert saved == [f"step-{watch.lines()}"]
        assert f"saved after step {watch.lines()};" in stopped.err
        assert f"has made {watch.lines()} of 16 steps" in (workspace / "run" / "report.html").read_text(
            encoding="utf-8"
        )
        burnish.train(resume=workspace / "run", observer=make_observer(quiet=True))
        whole = train(path, workspace / "whole").run_dir
        assert self.equal_but_for_checkpoints(traces(workspace / "run"), traces(whole))

    @pytest.mark.parametrize("delay", [0.0, 0.004, 0.03])
    def test_pressed_twice(self, workspace, traces, delay):
        # A Python of its own: the second one may come while the interpreter ends.
        process = workspace.start("train", "toy", "--run-dir", "run", "--quiet")
        watch = Watch(workspace / "run", process)
        assert watch.until(lambda: watch.lines() >= 5)
        process.send_signal(signal.SIGINT)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        stopped = workspace.finish(process)
        assert stopped.status == 130
        assert len(stopped.lines) == 1, stopped.err
        assert "burnish train --resume run" in stopped.err
        burnish.train(resume=workspace / "run", observer=make_observer(quiet=True))
        whole = train("toy", workspace / "whole").run_dir
        assert self.equal_but_for_checkpoints(traces(workspace / "run"), traces(whole))

    def test_before_the_first_step(self, workspace):
        process = workspace.start("train", "toy", "--run-dir", "run", "--quiet")
        watch = Watch(workspace / "run", process)
        assert watch.until(lambda: watch.has("recipe.toml"))
        process.send_signal(signal.SIGINT)
        stopped = workspace.finish(process)
        assert stopped.status == 130
        assert len(stopped.lines) == 1, stopped.err
        assert "burnish train --resume run" in stopped.err
        burnish.train(resume=workspace / "run", observer=make_observer(quiet=True))
        assert watch.lines() == 150
