"""Learners that split weights, gradients and moments: the numbers of a local run, checkpoints, and one that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import burnish
from burnish.backends.ray.sharding import Shard
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable
from burnish.run.interrupts import Interrupted
from tests.end_to_end.ray_runs import LEARNERS, assert_near, learners, rows, train
from tests.fakes import InterruptingObserver, RecordingObserver

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SHARD = [*LEARNERS, "backend.shard=true"]


class TestSameRun:
    def test_two_learners_have_the_metrics_of_a_local_run(self, cluster, workspace, here):
        path, local = here()
        run = train(path, workspace / "run", *SHARD).run_dir
        assert_near(run, local)
        assert_model_near(run, local)

    @pytest.mark.parametrize("kind", ["adapter", "tied"])
    def test_other_policies(self, cluster, workspace, here, tied, kind):
        extra = "\n[policy.lora]\nrank = 4\n" if kind == "adapter" else ""
        path, local = here(steps=2, extra=extra, model=tied if kind == "tied" else None)
        run = train(path, workspace / "run", *SHARD).run_dir
        assert_near(run, local)
        weights = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
        assert_weights_near(run, local, weights, 1e-4)
        assert not (run / "checkpoints/step-2/optimizer.safetensors").exists()

    def test_several_updates_in_a_step(self, cluster, workspace, here):
        changes = ["algorithm.epochs=2", "algorithm.minibatches=2", "record_tokens=true", "algorithm.kl.where=reward"]
        changes.append("optimizer.learning_rate=1e-4")  # of a higher one the updates enlarge every rounding
        path, local = here(steps=2, changes=changes)
        assert_near(train(path, workspace / "run", *SHARD, *changes).run_dir, local)


class TestCheckpoints:
    @pytest.mark.parametrize("backend", ["learners=3", "learners=1"])
    def test_resumed_with_another_number_of_learners(self, cluster, workspace, here, backend):
        path, local = here()
        run = workspace / "run"
        with pytest.raises(Interrupted):
            train(path, run, *SHARD, observer=InterruptingObserver(2))
        assert sorted(one.name for one in (run / "checkpoints/step-2/shards").iterdir()) == [
            f"shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)
        ]
        changes = [f"backend.{backend}", *(["backend.shard=false"] if backend == "learners=1" else [])]
        burnish.train(resume=run, observer=make_observer(quiet=True), overrides=changes)
        assert_near(run, local)
        assert_model_near(run, local)

    def test_of_a_local_run_resumed_with_two_learners(self, cluster, workspace, here):
        rounded = "policy.save_dtype=bfloat16"  # weights.safetensors has the exact ones
        path, local = here(changes=[rounded])
        run = workspace / "run"
        with pytest.raises(Interrupted):
            train(path, run, "optimizer.reuse_sampling=false", rounded, observer=InterruptingObserver(2))
        burnish.train(resume=run, observer=make_observer(quiet=True), overrides=SHARD)
        assert_near(run, local)
        assert_weights_near(run, local, "model.safetensors", 1e-2)  # in bfloat16

    def test_a_part_that_was_changed_is_refused(self, cluster, workspace, here):
        path, _ = here(steps=1)
        run = train(path, workspace / "run", *SHARD, "steps=2").run_dir
        (part, _) = sorted((run / "checkpoints/step-2/shards").iterdir())
        part.write_bytes(part.read_bytes()[:-1] + b"\x07")
        with pytest.raises(burnish.InputError, match=r"shard-00001.* is not what was saved: its SHA-256 differs"):
            burnish.train(resume=run, extend=1, observer=make_observer(quiet=True))


class TestLost:
    def test_the_run_goes_back_to_its_checkpoint_and_has_the_bits_of_one_that_was_not_disturbed(
        self, cluster, workspace, here
    ):
        path, _ = here(steps=1)
        whole = train(path, workspace / "whole", *SHARD, "steps=4").run_dir
        watcher = OnceKiller(1, 3)
        killed = train(path, workspace / "killed", *SHARD, "steps=4", observer=watcher).run_dir
        assert list(map(comparable, rows(killed))) == list(map(comparable, rows(whole)))
        assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
        assert_model_near(killed, whole, tolerance=0.0)
        said = [row for row in rows(killed, "warnings.jsonl") if row["kind"] == "learner"]
        assert [row["step"] for row in said] == [0, 2] and all(row["text"] in watcher.warnings for row in said)
        assert all("learner 2" in row["text"] for row in said)
        assert [call[1] for call in watcher.calls if call[0] == "step"] == [1, 1, 2, 3, 3, 4]

    @pytest.mark.parametrize("method", ["add_gradients", "update", "save"])
    def test_one_that_is_killed_within_a_call(self, cluster, workspace, here, monkeypatch, method):
        path, _ = here(steps=1)
        whole = train(path, workspace / "whole", *SHARD, "steps=4").run_dir
        own, calls = getattr(Shard, method), []

        def killing(shard: Shard, *arguments: Any) -> Any:
            """Make the driver's part of a call, the second time with a learner that is just being killed."""
            calls.append(method)
            if len(calls) == 2:
                os.kill(learners()[-1], signal.SIGKILL)
            return own(shard, *arguments)

        monkeypatch.setattr(Shard, method, killing)
        killed = train(path, workspace / "killed", *SHARD, "steps=4").run_dir
        assert list(map(comparable, rows(killed))) == list(map(comparable, rows(whole)))
        assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
        assert_model_near(killed, whole, tolerance=0.0)
        (said,) = (row for row in rows(killed, "warnings.jsonl") if row["kind"] == "learner")
        assert said["step"] == 0 and "learner 2" in said["text"]

    def test_one_that_is_always_lost_ends_the_run(self, cluster, workspace, here):
        path, _ = here(steps=1)
        with pytest.raises(burnish.BurnishError, match=r"2 times in this step \(backend.restarts = 1\)") as ended:
            train(path, workspace / "run", *SHARD, "steps=4", "backend.restarts=1", observer=OnceKiller(1, 1, 1))
        assert "--resume" in str(ended.value)


class OnceKiller(RecordingObserver):
    """An observer that kills a learner after some steps."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.left = list(steps)

    def step(self, metrics: Mapping[str, Any]) -> None:
        super().step(metrics)
        if metrics["step"] in self.left:
            self.left.remove(metrics["step"])
            os.kill(learners()[-1], signal.SIGKILL)


@pytest.fixture
def tied(tiny, tmp_path: Path) -> Path:
    """Return the folder of a tiny Llama whose embedding and head are one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


def assert_model_near(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    """Compare the two models, of which transformers loads the first."""
    from transformers import AutoModelForCausalLM

    assert_weights_near(ours, theirs, "model.safetensors", tolerance)
    loaded = AutoModelForCausalLM.from_pretrained(ours / "model").state_dict()
    assert all(torch.equal(loaded[name], one) for name, one in load_file(ours / "model/model.safetensors").items())


def assert_weights_near(ours: Path, theirs: Path, file: str, tolerance: float) -> None:
    mine, other = (load_file(run / "model" / file) for run in (ours, theirs))
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        assert float((weight - other[name]).abs().max()) <= tolerance, name
