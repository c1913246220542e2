"""What ``burnish doctor --ray`` says of machines: room for samplers, versions, memory, and the model's files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.backends.ray.cluster_check import Node, judged, room
from burnish.backends.ray.node_probe import PACKAGES, NodeFacts, readable_model
from burnish.recipe.schema import load_recipe

OWN = {"python": "3.11.7", **dict.fromkeys(PACKAGES, "1.0")}
FILES = (("config.json", 10), ("model.safetensors", 1_000_000_000))
GOOD = NodeFacts(OWN, 8_000_000_000, None, FILES, "")


def faults(facts: NodeFacts, *overrides: str, weights: int | None = 1_000_000_000) -> list[str]:
    recipe = load_recipe("news", ["backend.use=ray", *overrides])
    return [line.text for line in judged("node 10.0.0.2", facts, OWN, FILES, recipe, weights) if line.fault]


@pytest.mark.parametrize(
    ("cpus", "gpus", "machines", "places"),
    [
        (2, 0, [(8, 0), (3, 0)], 5),
        (2, 1, [(8, 2), (3, 8)], 3),  # two GPUs, and then processors for one sampler
        (1, 2, [(8, 5)], 2),
        (1, 0.4, [(16, 3)], 6),  # two samplers for each GPU
        (4, 0, [(3, 0), (3, 0)], 0),  # a sampler is not spread over machines
    ],
)
def test_samplers_that_fit(cpus, gpus, machines, places):
    nodes = [Node(str(number), f"10.0.0.{number}", *has, 1e9) for number, has in enumerate(machines)]
    device = ["policy.device=cuda"] if gpus else []
    for samplers in (1, 4):
        overrides = ["backend.use=ray", f"backend.cpus={cpus}", f"backend.gpus={gpus}", f"backend.samplers={samplers}"]
        *each, last = room(load_recipe("news", [*overrides, *device]), nodes)
        assert sum(int(line.text.split()[-2]) for line in each) == places and not any(line.fault for line in each)
        assert last.fault == (places < samplers)
        said = f"has room for {places}: " if last.fault else "has room for it" if samplers == 1 else "has room for them"
        assert said in last.text


@pytest.mark.parametrize(("learners", "fault"), [(3, False), (4, True)])
def test_learners_get_what_samplers_leave(learners, fault):
    nodes = [Node("a", "10.0.0.1", 4, 0, 1e9), Node("b", "10.0.0.2", 3, 0, 1e9)]
    overrides = ["backend.use=ray", "backend.cpus=2", "backend.samplers=1", f"backend.learners={learners}"]
    *_, samplers, others = room(load_recipe("news", overrides), nodes)
    assert not samplers.fault and others.fault == fault and others.subject == "learners"
    assert f"asks for {learners - 1} learners of 2 CPUs and 0 GPUs beside the driver" in others.text
    assert others.text.endswith("has room for them") or "has room for 2: " in others.text


@pytest.mark.parametrize(
    ("placement", "cpus", "faults"),
    [
        ("pack", [4, 2], [False, False, False]),
        ("spread", [4, 2], [False, False, False]),
        ("strict_pack", [6], [False, False, False]),
        ("strict_pack", [4, 4], [False, False, True]),  # two of three fit on one machine
        ("strict_spread", [2, 2, 2], [False, False, False]),
        ("strict_spread", [9, 9], [False, False, True]),  # a third machine is missing
    ],
)
def test_processes_are_placed_as_the_recipe_asks(placement, cpus, faults):
    nodes = [Node(str(number), f"10.0.0.{number}", has, 0, 1e9) for number, has in enumerate(cpus)]
    keys = ("use=ray", "cpus=2", "samplers=1", "learners=2", "scorers=1", f"placement={placement}")
    *_, samplers, learners, scorers = room(load_recipe("news", [f"backend.{key}" for key in keys]), nodes)
    assert [one.subject for one in (samplers, learners, scorers)] == ["samplers", "learners", "scorers"]
    assert [one.fault for one in (samplers, learners, scorers)] == faults


def test_a_machine_like_the_drivers_has_no_fault():
    assert faults(GOOD) == []
    assert faults(replace(GOOD, model=())) == []  # it will fetch the model
    assert faults(replace(GOOD, memory=1), weights=None) == []


def test_what_differs_is_named():
    (text,) = faults(replace(GOOD, versions={**OWN, "torch": "2.0"}))
    assert "torch 2.0" in text and "; the driver has torch 1.0: install the same versions" in text
    (text,) = faults(replace(GOOD, versions={**OWN, "ray": None}))
    assert "ray missing" in text
    (text,) = faults(replace(GOOD, memory=500_000_000))
    assert text == "0.5 GB of memory free, and a sampler holds 1.00 GB of weights"
    (text,) = faults(replace(GOOD, model=(), fault="no such folder"))
    assert text == "model 'smollm2-135m' cannot be read: no such folder"
    (text,) = faults(replace(GOOD, model=(FILES[0], ("model.safetensors", 7))))
    assert text.endswith("has other files than the driver's, such as 'model.safetensors'")


def test_vllm_may_have_another_torch_but_must_be_there():
    vllm = ["backend.engine=vllm", "backend.python=/elsewhere/python"]
    other = {**OWN, "torch": "2.0", "vllm": "installed"}
    assert faults(replace(GOOD, versions=other), *vllm) == []
    (text,) = faults(replace(GOOD, versions={**other, "vllm": None}), *vllm)
    assert "vllm missing" in text


def test_files_of_a_model(tiny, tmp_path):
    folder = tiny("llama")
    files, fault = readable_model(folder.name, str(folder.parent))
    assert fault == "" and {"config.json", "model.safetensors"} <= {name for name, _ in files}
    assert dict(files)["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    files, fault = readable_model(str(tmp_path / "none"), str(tmp_path))
    assert files == () and "there is no such folder" in fault
