"""``burnish plan``: its report, its JSON, what it refuses, and what it leaves unloaded."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from burnish.algorithms.presets import PRESETS
from burnish.cli import app as cli
from burnish.generation import engine
from burnish.planning import workload
from burnish.planning.constants import ORIGINS, Constants, option
from burnish.planning.estimate import estimate_run
from burnish.planning.memory import HEAD_BLOCK, HEAD_KEPT
from burnish.policies.kernels import fused_head
from burnish.recipe.schema import builtin_recipes, load_recipe
from burnish.rewards.registry import REWARDS
from burnish.training import batching

LENGTHS = ["--prompt-tokens", "300", "--answer-tokens", "400", "--set", "sampling.max_new_tokens=1024"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["burnish", "plan", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return int(exit.value.code or 0)


def test_the_report_names_placement_memory_time_and_constants(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "news", "--gpus", "8", "--model", "7b", "--price", "2", *LENGTHS) == 0
    out = capsys.readouterr().out
    assert "qwen2.5-7b, 7.62 billion weights (assumed: 7b has the shape of qwen2.5-7b)" in out
    (keys,) = (line.split()[1:] for line in out.splitlines() if line.startswith("keys "))
    backend = load_recipe("news", keys).backend
    assert (backend.learners, backend.shard, backend.gpus, backend.colocate) == (8, True, 0.5, True)
    assert "weights, gradients and moments sharded" in out
    assert "reference    algorithm.kl.coefficient = 0.02, reward perplexity" in out
    for text in ("KV cache", "AdamW moments", "sampling, s", "tokens/s", "weight sync, s", "at 2 per GPU hour"):
        assert text in out
    for name in ORIGINS:
        assert name.replace("_", " ") in out
    assert 'policy.dtype = "bfloat16" (the recipe has "float32")' in out


def test_json_adds_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "news", "--gpus", "8", "--model", "7b", "--price", "2", "--json", *LENGTHS) == 0
    report = json.loads(capsys.readouterr().out)
    for phase in report["memory"].values():
        assert phase.pop("total") == pytest.approx(sum(phase.values()))
    step = report["seconds"].pop("step")
    assert step == pytest.approx(sum(report["seconds"].values()))
    assert report["hours"] == pytest.approx(report["steps"] * step / 3600)
    assert report["cost"] == pytest.approx(2 * 8 * report["hours"]) == pytest.approx(2 * report["gpu_hours"])
    # 4 prompts of 6 samples of 400 tokens.
    assert report["tokens_per_second"]["sampling"] == pytest.approx(4 * 6 * 400 / report["seconds"]["sampling"])
    assert report["tokens_per_second"]["update"] == pytest.approx((1200 + 9600) / report["seconds"]["update"])
    assert report["placement"]["idle"] == 8 - report["placement"]["samplers"] - report["placement"]["learners"]


def test_where_nothing_fits_it_says_why_and_what_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "news", "--gpus", "1", "--model", "7b", *LENGTHS) == 1
    out = capsys.readouterr().out
    # 4 + 8 + 4 bytes for each of 7.62 billion weights, and their copy of 2.
    assert "none fits; the nearest: " in out and "update needs 14" in out and "72.0 are usable" in out
    assert "(AdamW moments 60.9, weights 30.5, gradients 30.5, bfloat16 weights 15.2, activations " in out
    fitting = [line.split(maxsplit=2)[2] for line in out.splitlines() if line.startswith("would fit")]
    assert fitting
    for change in fitting:
        given = ["news", "--gpus", "1", "--model", "7b", *LENGTHS, *change.split()]
        assert run(monkeypatch, *given) == 0, change
        capsys.readouterr()


def test_a_model_beyond_every_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "news", "--gpus", "8", "--gpu", "l4", "--model", "70b", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is False and report["keys"] is None and "seconds" not in report
    # Weights in bfloat16 alone are 141 GB, so that no single change is enough.
    assert [text.split()[1] for text in report["remedies"]] == ["b200", "b200"]
    for change in report["remedies"]:
        assert run(monkeypatch, "news", "--gpus", "8", "--model", "70b", *change.split()) == 0, change
        capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0: must be between 1 and 1024"),
        (["--gpus", "2000"], "--gpus 2000: must be between 1 and 1024"),
        (["--gpus", "1", "--price", "-1"], "--price -1: must be at least 0, per GPU and hour"),
        (["--gpus", "1", "--price", "nan"], "--price nan: must be at least 0"),
        (["--gpus", "1", "--gpu", "h10"], "--gpu h10: unknown GPU (did you mean 'h100'?); known: b200, h200"),
        (["--gpus", "1", "--model", "9b"], "--model 9b: neither a folder nor a model"),
        (["--gpus", "1", "--model", "tests"], "--model tests: the folder has no config.json"),
        (["--gpus", "1", "--max-staleness", "-1"], "--max-staleness -1: must be at least 0"),
        (["--gpus", "1", "--prompt-tokens", "0"], "--prompt-tokens 0: must be at least 1"),
        (["--gpus", "1", "--answer-tokens", "41"], "--answer-tokens 41: must be between 1 and sampling.max_new_tokens"),
        (["--gpus", "1", "--training-utilisation", "1.5"], "--training-utilisation 1.5: is a share"),
        (["--gpus", "1", "--network", "0"], "--network 0: must be above 0"),
        (["--gpus", "1", "--sampling-launch", "-1"], "--sampling-launch -1: must be at least 0"),
        (["--gpus", "1", "--set", "sampling.max_new_token=4"], "did you mean 'max_new_tokens'?"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path.cwd() / "tests").is_dir() or pytest.skip("runs from the root of a checkout")
    assert run(monkeypatch, "news", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("burnish: ")


def test_a_policy_without_layers_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "toy", "--gpus", "1") == 2
    assert 'policy.use = "tabular": burnish plan estimates language models' in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_recipe_of_a_language_model_can_be_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, name, "--gpus", "2", "--model", "1.5b") in (0, 2)


def test_every_constant_has_an_origin_and_an_option() -> None:
    names = [field.name for field in fields(Constants)]
    assert list(ORIGINS) == names
    parameters = inspect.signature(plan_verb()).parameters
    assert set(names) <= set(parameters)
    changed = estimate_run("news", gpus=1, constants=Constants(network=7.0)).to_json()["constants"]
    assert changed["network"] == {"value": 7.0, "origin": f"set by {option('network')}"}
    assert changed["rows"]["origin"] == ORIGINS["rows"]


def test_the_example_in_the_docs_is_real(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "en" / "planning.md").read_text(encoding="utf-8")
    command, *lines = page.partition("```text\n$ burnish plan ")[2].partition("```")[0].splitlines()
    assert run(monkeypatch, *command.split()) == 0
    printed = capsys.readouterr().out.splitlines()
    assert lines[-1] == "..." and printed[: len(lines) - 1] == lines[:-1]


def plan_verb() -> Any:
    return next(command.callback for command in cli.app.registered_commands if command.callback.__name__ == "plan")


def test_what_is_written_down_a_second_time_agrees_with_the_code() -> None:
    assert batching.ENOUGH_TOKENS == workload.ENOUGH
    assert (fused_head.CHUNK_ELEMENTS, fused_head.KEPT_ELEMENTS) == (HEAD_BLOCK, HEAD_KEPT)
    assert Constants().rows == engine.ROWS
    assert {name for name, preset in PRESETS.items() if preset.critic} == workload.WITH_CRITIC
    assert {name for name, preset in PRESETS.items() if preset.paired} == workload.PAIRED
    own = [name for name in REWARDS.names() if REWARDS.get(name).function.__module__.startswith("burnish.")]
    assert {name for name in own if "reference_policy" in REWARDS.get(name).arguments} == workload.READS_REFERENCE


@pytest.mark.slow
def test_planning_loads_neither_torch_nor_transformers() -> None:
    code = """
import sys
from burnish.cli import app as cli
sys.argv = ["burnish", "plan", "news", "--gpus", "8", "--model", "7b", "--json"]
try: cli.main()
except SystemExit: pass
loaded = lambda name: name in sys.modules and type(sys.modules[name]).__name__ != "_Postponed"
print([name for name in ("torch", "transformers", "numpy", "peft", "ray") if loaded(name)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
