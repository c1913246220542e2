"""Verdicts of the probes are kept for the same files, settings and code, and for nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import pytest

from burnish.generation import engine
from burnish.generation.engine import Engine, make_sampler
from burnish.policies import causal_lm, verdicts
from burnish.policies.kernels.packing import packed_states, padded_logits, padded_states
from burnish.policies.loading import load_model, load_policy
from burnish.recipe.schema import LoRA


@dataclass
class Probes:
    layouts: int = 0
    samplers: int = 0


@pytest.fixture
def probes(monkeypatch, tmp_path):
    """Counts of the probes that ran, in a cache folder of its own, with models of any size kept."""
    counts = Probes()
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "LARGE", 0)
    choose_layout, choose_sampler = causal_lm.choose_layout, engine.choose_sampler

    def layout(*args):
        counts.layouts += 1
        return choose_layout(*args)

    def sampler(*args):
        counts.samplers += 1
        return choose_sampler(*args)

    monkeypatch.setattr(causal_lm, "choose_layout", layout)
    monkeypatch.setattr(engine, "choose_sampler", sampler)
    return counts


def test_a_model_is_probed_once(tiny, probes):
    for _ in range(2):
        policy = load_policy(tiny("llama"))
        assert policy.layout is packed_states and isinstance(make_sampler(policy), Engine)
        assert policy.sampler_kind == "engine"
    assert probes == Probes(1, 1)


@pytest.mark.parametrize("change", ["file", "dtype", "adapter", "library", "code", "gpu", "damage", "products"])
def test_what_a_verdict_depends_on(tiny, probes, monkeypatch, tmp_path, change):
    folder, options, again = tiny("llama"), {}, Probes(2, 2)
    make_sampler(load_policy(folder))
    if change == "file":
        os.utime(folder / "config.json", ns=(1, 1))
    elif change == "dtype":
        options = {"dtype": "float64"}
    elif change == "adapter":
        options = {"lora": LoRA(rank=2)}
        again = Probes(1, 2)  # it has its base's layout, but other products while sampling
    elif change == "library":
        monkeypatch.setattr(verdicts, "version", lambda name: f"{name} of tomorrow")
    elif change == "code":
        monkeypatch.setattr(verdicts, "_code", lambda: [("engine.py", 1, 1)])
    elif change == "gpu":
        monkeypatch.setattr(verdicts, "gpus", lambda: ["a GPU of tomorrow"])
    elif change == "damage":
        for path in (tmp_path / "cache" / "probes").iterdir():
            path.write_text("[", encoding="utf-8")
    elif change == "products":
        options, again = {"dtype": "bfloat16"}, Probes(1, 2)  # float32 masters have one layout
    make_sampler(load_policy(folder, **options))
    assert probes == again


def test_a_verdict_that_is_not_the_fastest_keeps_its_reason(tiny, probes, monkeypatch):
    choice = causal_lm.LayoutChoice(padded_states, "because", padded_logits)
    monkeypatch.setattr(causal_lm, "choose_layout", lambda model: choice)
    first = load_model(tiny("gpt2"))
    monkeypatch.undo()
    assert first.verdicts.layout() == choice


@pytest.mark.parametrize(
    "layout", [["folded_states", "", "padded_logits"], ["packed_states"], [1, 2, 3, 4], [[], "", ""]]
)
def test_an_unknown_layout_is_probed_again(tiny, probes, tmp_path, layout):
    load_model(tiny("llama"))
    (path,) = (tmp_path / "cache" / "probes").iterdir()
    path.write_text(json.dumps({"layout": layout, "samplers": 3}), encoding="utf-8")
    make_sampler(load_model(tiny("llama")))
    assert probes == Probes(2, 1)


def test_small_models_and_full_disks_leave_no_file(tiny, probes, monkeypatch, tmp_path):
    monkeypatch.setattr(verdicts, "LARGE", 1 << 40)
    load_model(tiny("llama"))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(verdicts, "LARGE", 0)
    (tmp_path / "cache").write_text("not a folder", encoding="utf-8")
    load_model(tiny("llama"))
    assert probes == Probes(2, 0)
