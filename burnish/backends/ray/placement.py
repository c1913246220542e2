"""Room on a cluster for all processes of a run, reserved at once before the first of them starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from burnish.errors import BurnishError
from burnish.recipe.backend import BackendSection
from burnish.system.machine import cores

GLANCE = 1.0
"""Seconds after which a wait for room lets Ctrl-C through."""
KINDS = ("sampler", "learner", "scorer")


@dataclass(frozen=True, slots=True)
class Need:
    """The processes of one kind: how many, and what each of them needs."""

    count: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''} and {self.gpus:g} GPU{'' if self.gpus == 1 else 's'}"


def sampler_threads(backend: BackendSection) -> int:
    """Return the threads of each sampler."""
    return backend.cpus or (1 if backend.address is not None else max(1, cores() // backend.samplers))


def learner_threads(backend: BackendSection) -> int:
    """Return the threads of each learner other than the driver."""
    return backend.cpus or (1 if backend.address is not None else max(1, cores() // backend.learners))


def needs(backend: BackendSection) -> dict[str, Need]:
    """Return the processes of each kind that a run has besides the driver."""
    return {
        "sampler": Need(backend.samplers, sampler_threads(backend), backend.gpus),
        "learner": Need(backend.learners - 1, learner_threads(backend), backend.learner_gpus),
        "scorer": Need(backend.scorers, backend.cpus or 1, 0.0),
    }


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one machine has to have free, for the processes of these kinds."""

    kinds: tuple[str, ...]
    cpus: int
    gpus: float


def bundles(backend: BackendSection) -> tuple[list[Bundle], dict[tuple[str, int], int]]:
    """Return the bundles of a run, and where each process is: (kind, number from 0) -> index of its bundle.

    With ``colocate`` sampler N and learner N share a bundle, so a machine, and a GPU if each needs a part of one.
    """
    all_needs = needs(backend)
    seats: dict[tuple[str, int], int] = {}
    held: list[list[str]] = []
    for kind in KINDS:
        for number in range(all_needs[kind].count):
            together = backend.colocate and kind == "learner" and number < backend.samplers
            seats[kind, number] = number if together else len(held)
            if together:
                held[number].append(kind)
            else:
                held.append([kind])
    found = []
    for kinds in held:
        some = [all_needs[kind] for kind in kinds]
        found.append(Bundle(tuple(kinds), sum(one.cpus for one in some), sum(one.gpus for one in some)))
    return found, seats


class Reservation:
    """A placement group of Ray: room for every process of a run, or for none.

    Raises BurnishError if the cluster has no room within ``backend.time_limit``.
    """

    def __init__(self, ray: Any, backend: BackendSection) -> None:
        from ray.util.placement_group import placement_group

        self._ray, self._backend, self._needs = ray, backend, needs(backend)
        wanted, self._seats = bundles(backend)
        resources = [
            {"CPU": float(one.cpus), **({"GPU": float(one.gpus)} if one.gpus else {})} for one in wanted
        ]  # fmt: skip
        self._group = placement_group(resources, strategy=backend.placement.upper())
        try:
            self._wait()
        except BaseException:
            self.release()
            raise

    def options(self, kind: str, number: int) -> dict[str, Any]:
        """Return Ray's options of the actor of a kind with this number, from 0."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        need = self._needs[kind]
        place = PlacementGroupSchedulingStrategy(self._group, self._seats[kind, number])
        return {
            "num_cpus": need.cpus, "num_gpus": need.gpus, "scheduling_strategy": place,
            "max_restarts": -1, "max_task_retries": 0,
        }  # fmt: skip

    def release(self) -> None:
        """Give the room back, which ends the processes in it."""
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):  # the connection may be gone
            remove_placement_group(self._group)

    def _wait(self) -> None:
        limit = self._backend.time_limit
        deadline = time.monotonic() + limit
        while not self._group.wait(min(GLANCE, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() < deadline:
                continue
            asked = ", ".join(_asked(kind, need) for kind, need in self._needs.items() if need.count)
            raise BurnishError(
                f"the cluster had no room in {limit:g} s for {asked} (backend.placement = '{self._backend.placement}'): "
                f"{_has(self._ray)}; lower their number, backend.cpus or their GPUs, or add machines"
            )


def _asked(kind: str, need: Need) -> str:
    return f"{need.count} {kind}{'s' if need.count > 1 else ''} of {need}"


def _has(ray: Any) -> str:
    """Return what the cluster has and what of it is free."""
    whole: Mapping[str, float] = ray.cluster_resources()
    free: Mapping[str, float] = ray.available_resources()
    return ", ".join(f"{free.get(name, 0):g} of {whole.get(name, 0):g} {name}s are free" for name in ("CPU", "GPU"))
