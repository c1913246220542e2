"""vLLM as the sampler of a run: a real step with refreshed weights, a sampler that is killed, and an environment without.

The environment is the one of `make vllm`, or the one whose Python BURNISH_VLLM_PYTHON names.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

import burnish
from burnish.backends.ray.cluster import connected
from burnish.recipe.backend import BackendSection
from burnish.run.folder import read_lines
from tests.fakes import RecordingObserver

VLLM = Path(os.environ.get("BURNISH_VLLM_PYTHON") or Path(__file__).parents[2] / ".venv-vllm/bin/python")
here_only = pytest.mark.skipif(not VLLM.exists(), reason="NO vLLM HERE: `make vllm` makes its environment")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

BACKEND = ["backend.use=ray", "backend.engine=vllm", "backend.cpus=1", f"backend.python={VLLM}"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Connect this process to a cluster of its own."""
    with connected(BackendSection(use="ray", cpus=1, learners=2)) as ray:
        yield ray


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    """Return the folder of a tiny model with heads as wide as vLLM's attention on a CPU wants them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(tiny("llama"))
    config.hidden_size, config.head_dim = 128, 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(folder)
    return folder


def train(model: Path, run: Path, *overrides: str, observer: Any = None) -> Path:
    recipe = {
        "name": "vllm",
        "steps": 3,
        "policy": {"model": str(model)},
        "task": {"use": "jobs:Headlines"},
        "sampling": {"prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 8},
        "optimizer": {"learning_rate": 0.01},
        "reward": [{"use": "repetition"}],
        "evaluation": {"resamples": 100},
    }
    watcher = observer or RecordingObserver()
    return burnish.train(recipe, run_dir=run, observer=watcher, overrides=overrides).run_dir


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return list(read_lines(run / name))


class Killer(RecordingObserver):
    """An observer that kills the first sampler after the first step."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        super().step(metrics)
        if metrics["step"] == 1:
            children = psutil.Process().children(recursive=True)
            sampler = next(one for one in children if any("SamplerProcess" in part for part in one.cmdline()))
            os.kill(sampler.pid, signal.SIGKILL)


@here_only
class TestSampler:
    @pytest.mark.parametrize("lora", [[], ["policy.lora.rank=4"]], ids=["all weights", "adapter"])
    def test_a_run_with_refreshed_weights_and_one_whose_sampler_is_killed(
        self, cluster, model, workspace, monkeypatch, lora
    ):
        monkeypatch.chdir(workspace.folder)
        run = train(model, workspace / "run", *BACKEND, *lora)
        metrics = rows(run)
        # With weights of an earlier step, the gap would be that of a step: its KL is some 1e-3.
        assert [abs(row["mismatch_kl"]) < 1e-7 for row in metrics] == [True] * 3
        assert all(row["grad_norm"] > 0 and row["time/weights"] > 0 for row in metrics)
        assert all(row["importance/mean"] == pytest.approx(1, abs=1e-3) for row in metrics)
        assert burnish.load_recipe(run / "recipe.toml").algorithm.importance.form == "truncate"

        watcher = Killer()
        killed = train(model, workspace / "killed", *BACKEND, *lora, observer=watcher)
        assert (killed / "samples.jsonl").read_bytes() == (run / "samples.jsonl").read_bytes()
        (said,) = (row for row in rows(killed, "warnings.jsonl") if row["kind"] == "sampler")
        assert said["step"] == 2 and "did it again" in said["text"] and said["text"] in watcher.warnings

    def test_two_samplers_one_of_which_is_killed(self, cluster, model, workspace, monkeypatch):
        monkeypatch.chdir(workspace.folder)
        run = train(model, workspace / "run", *BACKEND, "backend.samplers=2")
        assert [abs(row["mismatch_kl"]) < 1e-7 for row in rows(run)] == [True] * 3
        killed = train(model, workspace / "killed", *BACKEND, "backend.samplers=2", observer=Killer())
        assert (killed / "samples.jsonl").read_bytes() == (run / "samples.jsonl").read_bytes()
        assert [row["step"] for row in rows(killed, "warnings.jsonl") if row["kind"] == "sampler"] == [2]

    def test_two_learners_do_not_need_vllm(self, cluster, model, workspace, monkeypatch):
        monkeypatch.chdir(workspace.folder)
        run = train(model, workspace / "run", *BACKEND, "backend.learners=2")
        assert [abs(row["mismatch_kl"]) < 1e-7 for row in rows(run)] == [True] * 3
        assert all(row["grad_norm"] > 0 and row["time/exchange"] > 0 for row in rows(run))

    def test_a_model_that_vllm_does_not_run_is_refused_before_the_first_step(
        self, cluster, tiny, workspace, monkeypatch
    ):
        monkeypatch.chdir(workspace.folder)
        with pytest.raises(burnish.InputError, match=r"vLLM cannot run this llama model .*head_dim=8"):
            train(tiny("llama"), workspace / "run", *BACKEND)


def test_without_vllm_one_line_says_how_to_get_it(workspace):
    options = ["--set", "backend.use=ray", "--set", "backend.engine=vllm"]
    done = workspace.ask("train", "news", "--run-dir", "run", *options)
    assert done.status == 2 and len(done.lines) == 1
    assert "pip install 'burnish[ray,vllm]'" in done.err and "backend.python" in done.err
    done = workspace.ask("train", "news", "--run-dir", "again", *options, "--set", f"backend.python={sys.executable}")
    assert done.status == 2 and len(done.lines) == 1 and "vLLM is not installed there" in done.err
    assert not (workspace / "run").exists() and not (workspace / "again").exists()
