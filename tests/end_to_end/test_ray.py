"""Runs on a Ray cluster: the metrics of a local run, processes that are killed, and nothing that is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

import burnish
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable
from burnish.run.interrupts import Interrupted
from tests.end_to_end.ray_runs import LEARNERS, RAY, Killer, assert_near, rows, train
from tests.fakes import InterruptingObserver, RecordingObserver

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

MODULE = '''
"""A policy whose process ends while it samples, unless it is the driver's: once, or always with the flag /dev/null."""

import os
import signal

import torch


class Dying(torch.nn.Module):
    def __init__(self, vocabulary_size, driver, flag):
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary_size, vocabulary_size)
        self.driver, self.flag, self.calls = driver, flag, 0

    def forward(self, tokens):
        self.calls += 1
        always = self.flag == os.devnull
        if self.flag and os.getpid() != self.driver and self.calls >= (6 if always else 30):
            try:
                os.close(os.open(self.flag, os.O_CREAT | (0 if always else os.O_EXCL)))
            except FileExistsError:
                return self.table(tokens)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.table(tokens)
'''


class TestSameRun:
    def test_one_sampler_that_is_killed_between_steps_gives_the_bits_of_a_local_run(self, cluster, workspace, here):
        path, local = here()
        watcher = Killer()
        killed = train(path, workspace / "killed", *RAY, observer=watcher).run_dir
        assert list(map(comparable, rows(killed))) == list(map(comparable, rows(local)))
        for name in ("samples.jsonl", "held_out.jsonl", "evaluation.json", "evaluation/after.json"):
            assert (killed / name).read_bytes() == (local / name).read_bytes(), name
        assert all(row["time/weights"] > 0 for row in rows(killed))
        said = [row for row in rows(killed, "warnings.jsonl") if row["kind"] == "sampler"]
        assert [row["step"] for row in said] == [2, 4] and all(row["text"] in watcher.warnings for row in said)
        assert all("sampler 1" in row["text"] and "did it again" in row["text"] for row in said)

    def test_two_samplers_and_resumed_with_one(self, cluster, workspace, here):
        path, local = here()
        run = workspace / "run"
        with pytest.raises(Interrupted):
            train(path, run, *RAY, "backend.samplers=2", observer=InterruptingObserver(2))
        burnish.train(resume=run, observer=make_observer(quiet=True), overrides=["backend.samplers=1"])
        assert_near(run, local)

    def test_two_samplers_draw_other_samples_for_a_prompt_that_comes_twice(self, cluster, workspace, here):
        twice = ["sampling.prompts_per_step=8", "steps=2"]  # of four prompts
        path, _ = here(steps=1)
        local = train(path, workspace / "local", *twice, "optimizer.reuse_sampling=false").run_dir
        assert_near(train(path, workspace / "run", *RAY, *twice, "backend.samplers=2").run_dir, local)

    def test_two_samplers_with_an_adapter(self, cluster, workspace, here):
        path, local = here(steps=2, extra="\n[policy.lora]\nrank = 4\n")
        assert_near(train(path, workspace / "run", *RAY, "backend.samplers=2").run_dir, local)

    def test_a_sampler_that_is_killed_while_it_samples(self, cluster, workspace, monkeypatch, capfd):
        local = self.dying(workspace, monkeypatch, "local", "")
        killed = self.dying(workspace, monkeypatch, "killed", str(workspace / "died"), *RAY, "backend.samplers=2")
        assert (workspace / "died").exists()
        assert (killed / "samples.jsonl").read_bytes() == (local / "samples.jsonl").read_bytes()
        (said,) = rows(killed, "warnings.jsonl")
        assert "was lost before it could sample 1 prompts" in said["text"]
        assert capfd.readouterr().out == ""

    def test_a_sampler_that_is_always_killed_ends_the_run(self, cluster, workspace, monkeypatch):
        with pytest.raises(burnish.BurnishError) as ended:
            self.dying(workspace, monkeypatch, "run", "/dev/null", *RAY, "backend.restarts=1")
        assert re.match(
            r"sampler 1 \(process \d+\) was to sample \d prompts and ended 2 times in a row", str(ended.value)
        )
        assert "backend.restarts = 1" in str(ended.value)

    def dying(self, workspace, monkeypatch, name: str, flag: str, *backend: str) -> Path:
        monkeypatch.chdir(workspace.folder)
        workspace.write("dying.py", MODULE)
        options = f'policy.options={{driver = {os.getpid()}, flag = "{flag}"}}'
        return train(JOB, workspace / name, options, *backend).run_dir


JOB = {
    "name": "dying",
    "steps": 3,
    "policy": {"use": "module", "module": "dying:Dying", "scores": "logits", "vocabulary": "byte"},
    "task": {"use": "jobs:Headlines"},
    "sampling": {"prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 8},
    "reward": [{"use": "repetition"}],
    "evaluation": {"resamples": 100},
}


def listening() -> list[tuple[str, str, int]]:
    """Return name, address and port of what listens in this process and its children."""
    sockets = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # an idle worker may end
            found = process.net_connections("inet")
            sockets += [(process.name(), *one.laddr) for one in found if one.status == psutil.CONN_LISTEN]
    return sockets


def from_outside(sockets: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    return [one for one in sockets if not ip_address(one[1].removeprefix("::ffff:")).is_loopback]


class TestCluster:
    def test_listens_on_loopback_only(self, cluster):
        assert listening(), "the cluster's control plane has a port"
        assert from_outside(listening()) == []

    def test_learners_listen_on_loopback_only(self, cluster, workspace, here):
        path, _ = here(steps=1)
        before, found = listening(), []

        class Looking(RecordingObserver):
            def step(self, metrics: Mapping[str, Any]) -> None:
                super().step(metrics)
                found.extend(listening())

        train(path, workspace / "run", *LEARNERS, "steps=1", observer=Looking())
        assert {name for name, *_ in set(found) - set(before)} & {psutil.Process().name()}, (
            "the driver's store has a port"
        )
        assert from_outside(found) == []


def left_behind(mark: str) -> list[str]:
    """Return the commands of the processes that have the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BURNISH_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


class TestNothingIsLeft:
    def start(self, workspace, *arguments: str) -> tuple[Any, str]:
        mark = uuid4().hex
        command = ["train", "toy", "--run-dir", "run", "--quiet", "--set", "backend.use=ray"]
        process = workspace.fork(*command, *arguments, BURNISH_TEST_MARK=mark)
        return process, mark

    def test_after_a_run(self, workspace):
        process, mark = self.start(workspace, "--set", "steps=3")
        done = workspace.finish(process)
        assert (done.status, done.err) == (0, "")
        assert left_behind(mark) == []
        assert not (Path.home() / ".ray").exists()

    # Ray sets a handler of its own for SIGTERM, which saves nothing.
    @pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_after_ctrl_c_and_a_request_to_stop(self, workspace, sent, status):
        process, mark = self.start(workspace, "--set", "steps=100000")
        while len(rows(workspace / "run")) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        assert any("raylet" in command for command in left_behind(mark))
        process.send_signal(sent)
        stopped = workspace.finish(process)
        assert (stopped.status, len(stopped.lines)) == (status, 1)
        assert "saved after step" in stopped.err and left_behind(mark) == []

    def test_after_an_error(self, workspace):
        process, mark = self.start(workspace, "--set", "reward.0.use=jobs:later", "--set", "task.use=toy")
        failed = workspace.finish(process)
        assert failed.status == 1 and "the judge went home" in failed.err
        assert left_behind(mark) == []

    def test_after_the_driver_was_killed(self, workspace):
        process, mark = self.start(workspace, "--set", "steps=100000")
        while len(rows(workspace / "run")) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        workspace.finish(process)
        while left_behind(mark):  # they notice it by themselves
            time.sleep(0.1)


class TestAhead:
    AHEAD = (*RAY, "backend.max_staleness=2", "checkpoint.every=2")

    def test_samples_are_of_older_weights_and_corrected(self, cluster, workspace, here):
        path, _ = here(steps=1)
        run = train(path, workspace / "run", *self.AHEAD, "steps=6").run_dir
        assert [row["staleness"] for row in rows(run)] == [0, 1, 2, 2, 2, 2]
        assert [row["steps_ahead"] for row in rows(run)] == [2, 2, 2, 2, 1, 0]
        assert all(row["mismatch_kl"] > 1e-9 for row in rows(run)[1:])
        assert all(row["importance/mean"] > 0 for row in rows(run))
        assert 'form = "truncate"' in (run / "recipe.toml").read_text(encoding="utf-8")

    def test_resumed_and_with_a_killed_sampler_it_has_the_same_bits(self, cluster, workspace, here):
        path, _ = here(steps=1)
        whole = train(path, workspace / "whole", *self.AHEAD, "steps=7").run_dir
        stopped = workspace / "stopped"
        with pytest.raises(Interrupted):
            train(path, stopped, *self.AHEAD, "steps=7", observer=InterruptingObserver(2))
        watcher = Killer()
        burnish.train(resume=stopped, observer=watcher, overrides=["backend.restarts=1"])
        assert any("was lost before" in text for text in watcher.warnings)
        assert (stopped / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
        assert list(map(comparable, rows(stopped))) == list(map(comparable, rows(whole)))

    def test_a_resumed_run_may_stop_sampling_ahead(self, cluster, workspace, here):
        path, _ = here(steps=1)
        run = workspace / "run"
        with pytest.raises(Interrupted):
            train(path, run, *self.AHEAD, "steps=6", observer=InterruptingObserver(3))
        burnish.train(resume=run, observer=make_observer(quiet=True), overrides=["backend.max_staleness=1"])
        assert [row["staleness"] for row in rows(run)] == [0, 1, 2, 0, 1, 1]

    def test_long_texts_are_drawn_in_parts_by_newer_weights(self, cluster, workspace, here):
        path, _ = here(steps=1)
        parts = ("backend.max_staleness=3", "backend.segment=3", "backend.samplers=2", "record_tokens=true", "steps=7")
        whole = train(path, workspace / "whole", *self.AHEAD, *parts).run_dir
        assert [row["staleness"] for row in rows(whole)] == [0, 1, 2, 3, 3, 3, 3]
        # Sampled by three versions, a text's log-probabilities are compared with those of the one that learns from it.
        assert all(row["mismatch_kl"] > 1e-9 for row in rows(whole)[1:])
        texts = [row for row in rows(whole, "samples.jsonl") if row["finish_reason"] == "length"]
        assert texts and all(row["tokens"] == 10 for row in texts)
        stopped = workspace / "stopped"
        with pytest.raises(Interrupted):
            train(path, stopped, *self.AHEAD, *parts, observer=InterruptingObserver(2))
        watcher = Killer()
        burnish.train(resume=stopped, observer=watcher, overrides=["backend.restarts=1"])
        assert any("was lost before" in text for text in watcher.warnings)
        assert (stopped / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
        assert list(map(comparable, rows(stopped))) == list(map(comparable, rows(whole)))

    def test_a_resumed_run_finishes_texts_that_were_interrupted(self, cluster, workspace, here):
        path, _ = here(steps=1)
        run = workspace / "run"
        with pytest.raises(Interrupted):
            train(path, run, *self.AHEAD, "backend.segment=2", "steps=6", observer=InterruptingObserver(3))
        held = json.loads((run / "checkpoints" / "step-3" / "in_flight.json").read_text(encoding="utf-8"))
        assert any(
            one["finish_reason"] == "length" and len(one["token_ids"]) == 2 for group in held["5"] for one in group
        )
        burnish.train(resume=run, observer=make_observer(quiet=True), overrides=["backend.segment=1000"])
        lengths = {(row["finish_reason"], row["tokens"]) for row in rows(run, "samples.jsonl")}
        assert all(reason == "stop" or tokens == 10 for reason, tokens in lengths)
