"""Learners and scorers of a Ray cluster: the numbers of a local run, also when processes are killed or hang."""

from __future__ import annotations

import threading

import pytest

import burnish
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable
from tests.end_to_end.ray_runs import LEARNERS, RAY, Killer, assert_near, learners, rows, train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


class TestLearners:
    def test_two_learners_have_the_metrics_of_a_local_run(self, cluster, workspace, here):
        path, local = here()
        run = train(path, workspace / "run", *LEARNERS).run_dir
        assert_near(run, local)
        assert all(row["time/exchange"] > 0 for row in rows(run))

    def test_two_learners_and_samplers_with_an_adapter(self, cluster, workspace, here):
        path, local = here(steps=2, extra="\n[policy.lora]\nrank = 4\n")
        assert_near(train(path, workspace / "run", *LEARNERS).run_dir, local)

    def test_one_that_is_killed_between_steps_leaves_the_bits_as_they_were(self, cluster, workspace, here):
        path, _ = here(steps=1)
        whole = train(path, workspace / "whole", *LEARNERS, "steps=4").run_dir
        watcher = Killer(learners)
        killed = train(path, workspace / "killed", *LEARNERS, "steps=4", observer=watcher).run_dir
        assert list(map(comparable, rows(killed))) == list(map(comparable, rows(whole)))
        assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
        said = rows(killed, "warnings.jsonl")
        assert [(row["step"], row["kind"]) for row in said] == [(2, "learner"), (4, "learner")]
        assert all("learner 2" in row["text"] and "all begin again" in row["text"] for row in said)

    def test_a_learner_shares_its_place_with_a_sampler(self, cluster, workspace, here):
        path, local = here(steps=2)
        keys = ("colocate=true", "placement=strict_pack", "samplers=2")
        assert_near(train(path, workspace / "run", *LEARNERS, *(f"backend.{key}" for key in keys)).run_dir, local)

    def test_without_room_for_all_nothing_starts(self, cluster, workspace, here):
        path, _ = here(steps=1)
        with pytest.raises(burnish.BurnishError) as refused:
            train(path, workspace / "run", *LEARNERS, "backend.placement=strict_spread", "backend.time_limit=2")
        said = str(refused.value)
        assert said.startswith("the cluster had no room in 2 s for 1 sampler of 1 CPU and 0 GPUs, 1 learner of 1 CPU")
        assert "'strict_spread'" in said and "3 of 3 CPUs are free" in said and learners() == []


REWARDS = '''
"""Rewards of each form: one that dies once, one that hangs once, and one that cannot do without the others."""

import os
import signal
import time


def once(flag):
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def each(text, *, dies="", hangs=""):
    if dies and once(dies):
        os.kill(os.getpid(), signal.SIGKILL)
    if hangs and once(hangs):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(3600)
    return text.count("e") / 10


def together(completions, log_metric, log_count):
    longest = max(len(one.text) for one in completions)
    log_metric("longest", longest)
    log_count("asked", len(completions))
    return [len(one.text) / max(longest, 1) for one in completions]


def picky(text):
    if len(text) % 5 == 0:
        raise ValueError("five")
    return None if len(text) % 3 == 0 else 1.0
'''

SCORED = """
[[reward]]
use = "mine:each"
weight = 2.0

[[reward]]
use = "mine:together"
normalise = "group"

[[reward]]
use = "mine:picky"
max_errors = 1.0
"""


class TestScorers:
    def test_scores_metrics_and_counts_are_those_of_a_local_run(self, cluster, workspace, here):
        workspace.write("mine.py", REWARDS)
        path, local = here(steps=2, extra=SCORED)
        run = train(path, workspace / "run", *RAY, "backend.scorers=2").run_dir
        assert list(map(comparable, rows(run))) == list(map(comparable, rows(local)))
        assert (run / "samples.jsonl").read_bytes() == (local / "samples.jsonl").read_bytes()
        assert (run / "evaluation.json").read_bytes() == (local / "evaluation.json").read_bytes()

    @pytest.mark.parametrize("fault", ["dies", "hangs"])
    def test_one_that_is_lost_is_replaced_and_the_scores_stay(self, cluster, workspace, here, fault):
        workspace.write("mine.py", REWARDS)
        path, _ = here(steps=1)
        limit = 600 if fault == "dies" else 30
        faulty = f"reward=[{{use='mine:each',{fault}='{workspace / fault}'}},{{use='bleu'}}]"
        sound = "reward=[{use='mine:each'},{use='bleu'}]"
        plain = train(path, workspace / "plain", sound, "optimizer.reuse_sampling=false")
        run = train(path, workspace / "run", *RAY, "backend.scorers=1", f"backend.time_limit={limit}", faulty).run_dir
        assert (workspace / fault).exists()
        assert (run / "samples.jsonl").read_bytes() == (plain.run_dir / "samples.jsonl").read_bytes()
        (said,) = rows(run, "warnings.jsonl")
        assert said["kind"] == "scorer" and "completions by reward 'each'" in said["text"]

    def test_a_function_that_cannot_be_sent_is_refused(self, cluster, workspace, here):
        path, _ = here(steps=1)
        lock = threading.Lock()

        def locked(text: str) -> float:
            with lock:
                return 1.0

        with pytest.raises(burnish.InputError, match=r"'locked' cannot be sent to scorers .* backend.scorers = 0"):
            burnish.train(
                path, rewards=[locked], run_dir=workspace / "run", observer=make_observer(quiet=True),
                overrides=[*RAY, "backend.scorers=1"],
            )  # fmt: skip
