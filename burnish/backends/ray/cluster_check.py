"""Check of a cluster before a long run: what each machine has against what the recipe asks of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.backends.ray.actors import reason
from burnish.backends.ray.cluster import connected
from burnish.backends.ray.node_probe import PACKAGES, NodeFacts, NodeProbe, installed, readable_model
from burnish.backends.ray.placement import Bundle, bundles, needs
from burnish.errors import BurnishError
from burnish.recipe.schema import Recipe

LIMIT = 120.0
"""Seconds that a machine has to answer; a lower ``backend.time_limit`` shortens it."""
BLOCK = 64 << 20
"""Bytes that are sent to each machine to measure how fast they arrive."""
STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=5)
    print("answered")
except Exception as error:
    print(type(error).__name__)
"""
"""A program that asks the cluster's control plane without a token."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the report: what it is about, what was seen, and whether a run would fail or be open to others."""

    subject: str
    text: str
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, as Ray describes it."""

    id: str
    address: str
    cpus: float
    gpus: float
    store: float

    @property
    def name(self) -> str:
        return f"node {self.address}"


def check_cluster(recipe: Recipe) -> Iterator[Line]:
    """Yield what is seen of the cluster of a recipe's backend, which is left, or stopped if it was started for this.

    Raises BurnishError if there is no connection.
    """
    backend = recipe.backend
    limit = min(LIMIT, backend.time_limit)
    with connected(backend) as ray:
        context = ray.get_runtime_context()
        nodes = [_node(one) for one in ray.nodes() if one["Alive"]]
        lost = [str(one["NodeManagerAddress"]) for one in ray.nodes() if not one["Alive"]]
        gone = f"{len(lost)} lost" + (f" ({', '.join(lost[-3:])})" if lost else "")
        started = "" if backend.address else ", started on this machine for this check"
        yield Line("cluster", f"{context.gcs_address}, {_count(len(nodes), 'node')}, {gone}{started}")
        yield _token(context.gcs_address, limit)
        yield from room(recipe, nodes)
        weights = _weight_bytes(recipe)
        yield from _store(recipe, nodes, weights)
        probes = {node: _probe(ray, node, backend.python) for node in nodes}
        try:
            silent: list[Node] = []
            yield from _looked(ray, recipe, probes, limit, weights, silent)
            yield from _sent(
                ray,
                {node: probe for node, probe in probes.items() if node not in silent},
                context.get_node_id(),
                limit,
                weights,
            )
        finally:
            for probe in probes.values():
                ray.kill(probe)


def _node(one: Mapping[str, Any]) -> Node:
    has = one["Resources"]
    store = has.get("object_store_memory", 0)
    return Node(one["NodeID"], one["NodeManagerAddress"], has.get("CPU", 0), has.get("GPU", 0), store)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _token(address: str, limit: float) -> Line:
    """Ask without a token: what counts is whether the cluster refuses, and not what it was told to do."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_")}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", STRANGER, address], env={**environment, "RAY_AUTH_MODE": "disabled"},
            capture_output=True, text=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Line("token", f"a program without a token got no answer from {address} in {limit:g} s", True)
    answer = asked.stdout.strip()
    if answer == "AuthenticationError":
        return Line("token", "a program without the cluster's token is refused")
    if answer == "answered":
        fix = "start it with RAY_AUTH_MODE=token on every machine"
        return Line(
            "token", f"the cluster answers programs without a token, so whoever reaches it rules it: {fix}", True
        )
    said = answer or (asked.stderr.strip().splitlines() or ["no answer"])[-1][:200]
    return Line("token", f"whether a token is needed could not be found out ({said})", True)


class Room:
    """What of a machine's CPUs and GPUs is not taken."""

    def __init__(self, node: Node) -> None:
        self.cpus, self.gpus = node.cpus, [1.0] * int(node.gpus)

    def take(self, cpus: float, gpus: float) -> bool:
        """Take a process's share, if there is room; a part of a GPU lies on a single one."""
        parts = [gpus] if 0 < gpus < 1 else [1.0] * int(gpus)
        fitting = sorted(index for index, free in enumerate(self.gpus) if free >= min(parts, default=0) - 1e-9)
        if cpus > self.cpus or len(fitting) < len(parts):
            return False
        self.cpus -= cpus
        for index, part in zip(fitting, parts, strict=False):
            self.gpus[index] -= part
        return True

    def places(self, cpus: float, gpus: float) -> int:
        """Take as many shares as there is room for, and return their number."""
        number = 0
        while self.take(cpus, gpus):
            number += 1
        return number


def room(recipe: Recipe, nodes: Sequence[Node]) -> Iterator[Line]:
    """Yield what each machine has, and whether the recipe's processes have room on them, placed as it asks."""
    backend, need = recipe.backend, needs(recipe.backend)
    sampler = need["sampler"].cpus, need["sampler"].gpus
    for node in nodes:
        fits = _count(Room(node).places(*sampler), "sampler")
        yield Line(
            node.name,
            f"{node.cpus:g} CPUs, {node.gpus:g} GPUs, object store {node.store / 1e9:.1f} GB: room for {fits}",
        )
    placed = Counter(kind for bundle in _placed(bundles(backend)[0], nodes, backend.placement) for kind in bundle.kinds)
    strict = f" with backend.placement = '{backend.placement}'" if backend.placement.startswith("strict") else ""
    for kind, one in need.items():
        if not one.count:
            continue
        beside = " beside the driver" if kind == "learner" else ""
        asked = f"the recipe asks for {_count(one.count, kind)} of {one}{beside}, and{strict} the cluster has room for"
        fix = "lower their number, backend.cpus or their GPUs, or add machines"
        fault = placed[kind] < one.count
        text = f"{asked} {placed[kind]}: {fix}" if fault else f"{asked} {'it' if one.count == 1 else 'them'}"
        yield Line(f"{kind}s", text, fault)


def _placed(wanted: Sequence[Bundle], nodes: Sequence[Node], placement: str) -> list[Bundle]:
    """Return the bundles that find room: on one machine or each on its own where the placement is strict."""
    if placement == "strict_pack":
        return max((_taken(wanted, [Room(node)]) for node in nodes), key=len, default=[])
    return _taken(wanted, [Room(node) for node in nodes], once=placement == "strict_spread")


def _taken(wanted: Sequence[Bundle], rooms: list[Room], *, once: bool = False) -> list[Bundle]:
    """Put bundles into the first room that fits, which holds a single one if so asked; return those with room."""
    found = []
    for bundle in wanted:
        place = next((one for one in rooms if one.take(bundle.cpus, bundle.gpus)), None)
        if place is not None:
            found.append(bundle)
        if once and place is not None:
            rooms.remove(place)
    return found


def _weight_bytes(recipe: Recipe) -> int | None:
    """Return the bytes of a policy's weights as they are trained, or None if its files do not say so."""
    if recipe.policy.use != "causal_lm":
        return None
    from safetensors import safe_open

    from burnish.catalogue.model_files import model_files

    try:
        files = [file for file in model_files(recipe.policy.model, offline=True) if file.suffix == ".safetensors"]
        count = 0
        for file in files:
            with safe_open(file, framework="numpy") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, BurnishError, ValueError):
        return None
    return count * (8 if recipe.policy.dtype == "float64" else 4) or None


def _store(recipe: Recipe, nodes: Sequence[Node], weights: int | None) -> Iterator[Line]:
    if weights is None:
        yield Line("weights", "of unknown size on this machine")
        return
    if recipe.policy.lora is not None:
        yield Line("weights", f"{weights / 1e9:.2f} GB per sampler; each step sends the adapter alone")
        return
    needed = 2 * weights  # those of the last step may still be in use when the next arrive
    small = [node for node in nodes if node.store < needed]
    text = f"{weights / 1e9:.2f} GB, sent once a step; an object store needs room for two, {needed / 1e9:.2f} GB"
    if small:
        names = ", ".join(f"{node.name} has {node.store / 1e9:.2f}" for node in small)
        yield Line("weights", f"{text}: {names}; start it with a larger --object-store-memory", True)
    else:
        yield Line("weights", text)


def _probe(ray: Any, node: Node, python: str | None) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {} if python is None else {"runtime_env": {"py_executable": python}}
    place = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(NodeProbe).options(num_cpus=0, scheduling_strategy=place, **options).remote()


def _looked(
    ray: Any, recipe: Recipe, probes: Mapping[Node, Any], limit: float, weights: int | None, silent: list[Node]
) -> Iterator[Line]:
    """Yield what a process on each machine sees; machines that do not answer are added to ``silent``."""
    model = recipe.policy.model if recipe.policy.use == "causal_lm" else None
    asked = {
        node: probe.look.remote(model, os.getcwd(), recipe.backend.engine) for node, probe in probes.items()
    }  # fmt: skip
    deadline = time.monotonic() + limit
    own = {"python": sys.version.split()[0], **{name: installed(name) for name in PACKAGES}}
    here = readable_model(model, os.getcwd())[0] if model is not None else ()
    for node, reference in asked.items():
        facts = _answer(ray, reference, max(0.0, deadline - time.monotonic()), limit)
        if isinstance(facts, str):
            silent.append(node)
            yield Line(node.name, facts, True)
        else:
            yield from judged(node.name, facts, own, here, recipe, weights)


def judged(
    name: str, facts: NodeFacts, own: Mapping[str, str | None], here: Sequence[tuple[str, int]], recipe: Recipe,
    weights: int | None,
) -> Iterator[Line]:  # fmt: skip
    """Yield the lines about one machine, compared with the driver's versions and its model's files."""
    listed = ", ".join(f"{package} {number or 'missing'}" for package, number in facts.versions.items())
    # vLLM holds torch and transformers back; weights and log-probabilities are compared when it starts.
    same = ("python", "ray", "burnish") if recipe.backend.python is not None else ("python", *PACKAGES)
    odd = [package for package in same if facts.versions[package] != own[package]]
    missing = [package for package, number in facts.versions.items() if number is None]
    if odd or missing:
        theirs = ", ".join(f"{package} {own[package] or 'missing'}" for package in odd)
        driver = f"; the driver has {theirs}" if odd else ""
        yield Line(name, f"{listed}{driver}: install the same versions on every machine", True)
    else:
        yield Line(name, listed)
    text = f"{facts.memory / 1e9:.1f} GB of memory free"
    if weights is not None and facts.memory < weights:
        yield Line(name, f"{text}, and a sampler holds {weights / 1e9:.2f} GB of weights", True)
    else:
        yield Line(name, text)
    if recipe.policy.use == "causal_lm":
        yield _model_line(name, facts, here, recipe.policy.model)


def _model_line(name: str, facts: NodeFacts, here: Sequence[tuple[str, int]], model: str) -> Line:
    if facts.fault:
        return Line(name, f"model '{model}' cannot be read: {facts.fault}", True)
    if not facts.model:
        return Line(name, f"model '{model}' is not in its cache; each sampler's machine fetches it from the hub")
    if here and sorted(facts.model) != sorted(here):
        odd = sorted(set(facts.model) ^ set(here))[0][0]
        return Line(name, f"model '{model}' has other files than the driver's, such as '{odd}'", True)
    return Line(name, f"model '{model}' can be read, {sum(size for _, size in facts.model) / 1e9:.2f} GB")


def _sent(ray: Any, probes: Mapping[Node, Any], own: str, limit: float, weights: int | None) -> Iterator[Line]:
    """Send a block to one machine after the other, so that they do not share the driver's connection."""
    import numpy as np

    for node, probe in probes.items():
        block = ray.put(np.random.default_rng(0).integers(0, 256, BLOCK, dtype=np.uint8))
        seconds = _answer(ray, probe.receive.remote([block]), limit, limit)
        if isinstance(seconds, str):
            yield Line(node.name, f"was to receive {BLOCK >> 20} MiB: {seconds}", True)
            continue
        how = "reads" if node.id == own else "receives"
        takes = "" if weights is None else f"; the weights take {weights / BLOCK * seconds:.2f} s"
        yield Line(node.name, f"{how} {BLOCK / seconds / 1e6:.0f} MB/s from the driver's object store{takes}")


def _answer(ray: Any, reference: Any, left: float, limit: float) -> Any:
    """Return an answer, or a text that says why there is none."""
    try:
        return ray.get(reference, timeout=left)
    except ray.exceptions.GetTimeoutError:
        return f"gave no answer in {limit:g} s"
    except ray.exceptions.RayTaskError as error:
        return f"cannot run burnish: {reason(error.cause)}"
    except ray.exceptions.RayError as error:
        return f"cannot run a process, or lost it: {reason(error)}"
