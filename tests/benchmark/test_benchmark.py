"""The benchmark's arithmetic, its workloads and its refusals; and one real run of its runner on a tiny model."""

from __future__ import annotations

import subprocess
import sys
import xml.dom.minidom
from dataclasses import replace

import pytest

from burnish.benchmark import floor, harness
from burnish.benchmark.harness import PARAMETERS, Quiet, _jobs, check_peers, drawing, table, workload_medians
from burnish.benchmark.protocol import BenchmarkJob, JobResult, Step
from burnish.benchmark.task import JobPrompts
from burnish.benchmark.workloads import WORKLOADS, exact_prompts, workload
from burnish.catalogue.convert import resolve_model
from burnish.errors import BurnishError, InputError
from burnish.policies.loading import load_policy

SPEEDS = floor.Speeds(200.0, {32: 100.0, 64: 150.0})


def job(**changes) -> BenchmarkJob:
    given = {
        "workload": "w", "kind": "grpo", "model": "m", "prompts": ("a", "b"), "prompt_ids": ((1, 2), (3, 4, 5)),
        "samples_per_prompt": 16, "max_new_tokens": 4, "steps": 1, "warmup": 0, "microbatch": 1,
    }  # fmt: skip
    return BenchmarkJob(**given | changes)


def answer(number: int, runner: str, seconds: float, sampling: float, tokens: float, peak: int = 10) -> dict:
    return {
        "round": number, "workload": "w", "runner": runner, "seconds": seconds, "sampling_seconds": sampling,
        "tokens": tokens, "peak_bytes": peak,
    }  # fmt: skip


class TestFloor:
    def test_a_step(self):
        # 5 prompt tokens at 200 GFLOP/s and 100 sampled ones at the 32 rows' 100: 2 10^9 (5 / 2e11 + 100 / 1e11) s.
        assert floor.sampling_seconds(10**9, 5, 100, 32, SPEEDS) == pytest.approx(0.05 + 2.0)
        # 6 10^9 (5 + 100) / 2e11; with frozen weights 4 instead of 6.
        assert floor.training_seconds(10**9, 5, 100, SPEEDS) == pytest.approx(3.15)
        assert floor.training_seconds(10**9, 5, 100, SPEEDS, adapter=True) == pytest.approx(2.1)

    def test_the_nearest_number_of_rows(self):
        assert [SPEEDS.at(rows) for rows in (1, 40, 50, 500)] == [100, 100, 150, 150]


ANSWERS = [
    answer(1, "burnish", 4.0, 2.0, 100), answer(1, "trl", 12.0, 4.0, 100, 30),
    answer(2, "burnish", 5.0, 2.0, 100), answer(2, "trl", 10.0, 4.0, 50, 40),
    answer(3, "burnish", 6.0, 3.0, 100), answer(3, "trl", 24.0, 4.0, 100, 50),
]  # fmt: skip


class TestSummary:
    def test_medians_of_ratios_within_rounds(self):
        row = workload_medians(ANSWERS, job(), SPEEDS, parameters=10**9)
        # 12/4 = 3, 10/5 = 2, 24/6 = 4: the median is 3 (the ratio of the medians would be 12/5).
        assert row.ratio == {"trl": 3.0}
        # A token: 3, (10/50) / (5/100) = 4, 4.
        assert row.token_ratio == {"trl": 4.0}
        assert row.seconds == {"burnish": 5.0, "trl": 12.0}
        assert row.peak == {"burnish": 10, "trl": 40}
        # Sampling at least 2.05 s (as above), measured 2 s; training at least 3.15 s, measured 5 - 2.
        assert row.limits == pytest.approx({"sampling": 2.05 / 2, "training": 3.15 / 3})

    def test_a_peer_that_gave_nothing_and_burnish_that_gave_nothing(self):
        row = workload_medians(ANSWERS[:1], job(kind="sampling"), SPEEDS)
        assert row.ratio == {} and set(row.limits) == {"sampling"}
        with pytest.raises(ValueError, match="burnish"):
            workload_medians(ANSWERS[1:2], job(), SPEEDS)

    def test_the_table_and_the_plot(self):
        row = workload_medians(ANSWERS, job(), SPEEDS, parameters=10**9)
        found = {"processor": "P", "threads": 2, "gflops": {"32": 100.0, "2048": 200.0}}
        text = table([row], found)
        assert "| w | trl | 12.0 | 4.0 | 100 | 25 | 0.00 | 3.00 | 4.00 |  |  |" in text
        assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
        image = xml.dom.minidom.parseString(drawing([row]))
        bars = [rect.getAttribute("width") for rect in image.getElementsByTagName("rect")][1:]
        assert bars == ["175.0", "420.0"]  # 5 s and 12 s
        assert drawing([]) == ""


class TestWorkloads:
    def test_those_of_the_field(self):
        sizes = {work.name: (work.prompts, work.samples, work.prompt_tokens, work.max_new_tokens) for work in WORKLOADS}
        assert sizes["short"] == (8, 8, 39, 64)
        assert sizes["ragged"] == (8, 8, None, 256)
        assert sizes["long"] == (4, 16, 600, 32)
        assert all(work.completions % work.peer_microbatch == 0 for work in WORKLOADS)

    def test_an_unknown_one(self):
        with pytest.raises(InputError, match=r"'shrt' \(did you mean 'short'\?\)"):
            workload("shrt")

    def test_prompts_of_exact_length(self):
        def encode(text: str) -> list[str]:
            return text.split(" ")

        assert exact_prompts(["a b c", "d", "e f"], 2, 2, encode, " ".join) == ["a b", "d e"]
        with pytest.raises(InputError, match="only 1 of 2 prompts of exactly 3 tokens"):
            exact_prompts(["a b c", "d"], 2, 3, encode, " ".join)

    def test_an_order_survives_its_file(self, tmp_path):
        job(options=("threads=1",)).write(tmp_path / "job.json")
        assert BenchmarkJob.read(tmp_path / "job.json") == job(options=("threads=1",))
        assert job().prompt_tokens == 5 and job().completions == 32


@pytest.mark.model
def test_burnish_encodes_the_prompts_of_each_workload_as_its_job_says(tmp_path):
    """Markers of the template in a plain prompt are ordinary text, so a chat's prompts are messages."""
    source = resolve_model("smollm2-135m", offline=True)
    policy = load_policy(source, offline=True)
    jobs = _jobs(WORKLOADS, threads=1)
    for work in WORKLOADS:
        path = tmp_path / f"{work.name}.json"
        jobs[work.name, False].write(path)
        prompts = JobPrompts(path=str(path)).train()
        assert tuple(tuple(policy.encode_prompt(prompt)) for prompt in prompts) == jobs[work.name, False].prompt_ids
    assert not jobs["ragged", True].questions  # a peer encodes the rendered text


def test_when_a_machine_is_quiet():
    assert Quiet(0.5, 0.99, 2).complaint is None
    assert "load average of the last minute is 0.70" in Quiet(0.7, 0.99, 2).complaint
    assert "got 90% of the time" in Quiet(0.0, 0.9, 2).complaint
    assert Quiet(None, 0.99, 2).complaint is None


def test_peers_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("burnish.benchmark.harness.CHECKOUT", tmp_path)
    with pytest.raises(InputError, match="no peer named 'verl'; known: trl, hf, vllm"):
        check_peers(["verl"])
    with pytest.raises(InputError, match="'trl' has no environment yet: build it with make bench-peer"):
        check_peers(["trl"])


@pytest.fixture
def tiny_job(tiny):
    """Return a job for a tiny model, with its tokens as the prompts."""
    from burnish.policies.loading import load_model

    folder = tiny("llama")
    texts = ("The minister said", "Shares fell")
    ids = tuple(tuple(load_model(folder).tokenizer(text)["input_ids"]) for text in texts)
    return job(
        model=str(folder), prompts=texts, prompt_ids=ids, samples_per_prompt=3, steps=2, warmup=1, threads=1
    )  # fmt: skip


def run_job(path, given: BenchmarkJob) -> subprocess.CompletedProcess:
    given.write(path)
    command = [sys.executable, "-m", "burnish.benchmark.runner", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "sampling"])
def test_the_runner_runs_a_job(tiny_job, tmp_path, kind):
    done = run_job(tmp_path / "job.json", replace(tiny_job, kind=kind))
    assert done.returncode == 0, done.stderr
    found = JobResult.parse(done.stdout)
    assert (len(found.warmup), len(found.steps)) == (1, 2)
    assert all(0 < step.sampling_seconds <= step.seconds and 6 <= step.tokens <= 24 for step in found.steps)
    assert found.peak_bytes > 10**8


@pytest.mark.slow
def test_the_runner_refuses_a_job_whose_prompts_it_encodes_to_other_tokens(tiny_job, tmp_path):
    refused = run_job(tmp_path / "job.json", replace(tiny_job, prompt_ids=((1,), (2,))))
    assert refused.returncode == 1 and "encoded to other tokens" in refused.stderr


@pytest.mark.model
def test_the_parameters_are_the_models():
    from burnish.catalogue.convert import model_folder
    from burnish.policies.loading import load_model

    model = load_model(model_folder("smollm2-135m", offline=True)).model
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS
    assert Step(1.0, 0.5, 3).tokens == 3


@pytest.mark.parametrize(
    "ends, reason",
    [
        ("echo some; echo 'no such option' >&2; exit 1", "no such option"),
        ("exit 0", "no output"),
        ("kill -9 $$", "the system killed it; it probably needs more memory than is free"),
    ],
)
def test_a_peer_that_fails_says_why(ends, reason, tiny_job, tmp_path, monkeypatch):
    peer = tmp_path / "python"
    peer.write_text(f"#!/bin/sh\n{ends}\n", encoding="utf-8")
    peer.chmod(0o755)
    monkeypatch.setattr(harness, "peer_python", lambda _: peer)
    with pytest.raises(BurnishError, match=f"^trl failed on {tiny_job.workload}: {reason}$"):
        harness.run_job("trl", tiny_job)
