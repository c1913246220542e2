"""A cluster whose object store is full: weights wait for room, and the samples stay as they were."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.backends.ray import cluster
from burnish.recipe.backend import BackendSection
from burnish.run.folder import comparable
from tests.end_to_end.ray_runs import RAY, rows, train
from tests.fakes import RecordingObserver

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

STORE = 80_000_000
"""Bytes; Ray takes no less than 75 MiB."""
DISK = "120m"


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """Connect this process to a cluster with a small store, on a small disk of its own."""
    import ray

    with tempfile.TemporaryDirectory(prefix="br-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "burnish", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("a disk of a given size can be mounted by root alone")
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cluster, "_short_folder", lambda: Path(folder))
                patch.setattr(ray, "init", partial(ray.init, object_store_memory=STORE))
                with cluster.connected(BackendSection(use="ray", cpus=1)):
                    yield ray
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


class Ballast:
    """Objects that hold the store and its disk."""

    def __init__(self, ray: Any) -> None:
        self.ray, self.held = ray, []

    def add(self, size: int, most: int = 1000) -> None:
        """Add objects of this size until nothing takes any more."""
        try:
            for _ in range(most):
                self.held.append(self.ray.put(np.zeros(size, np.uint8)))
        except (self.ray.exceptions.ObjectStoreFullError, self.ray.exceptions.OutOfDiskError):
            return


def assert_same(run: Path, local: Path) -> None:
    assert list(map(comparable, rows(run))) == list(map(comparable, rows(local)))
    assert (run / "samples.jsonl").read_bytes() == (local / "samples.jsonl").read_bytes()


def test_a_full_store_spills(small, workspace, here):
    path, local = here(steps=2)
    ballast = Ballast(small)
    ballast.add(30_000_000, most=3)
    assert_same(train(path, workspace / "run", *RAY).run_dir, local)


class Filler(RecordingObserver):
    """Fills the store and its disk after a step, and frees them when the run says that they are full."""

    def __init__(self, ray: Any) -> None:
        super().__init__()
        self.ballast = Ballast(ray)

    def step(self, metrics: Any) -> None:
        super().step(metrics)
        if metrics["step"] == 1:
            for size in (20_000_000, 1_000_000, 100_000, 1000):
                self.ballast.add(size)

    def message(self, text: str, *, level: str = "info") -> None:
        super().message(text, level=level)
        if "store of the driver's machine is full" in text:
            self.ballast.held.clear()


def test_weights_wait_for_room(small, workspace, here):
    path, local = here(steps=3)
    watcher = Filler(small)
    run = train(path, workspace / "run", *RAY, observer=watcher).run_dir
    assert_same(run, local)
    said = rows(run, "warnings.jsonl")
    assert [(row["step"], row["kind"]) for row in said] == [(2, "store")] and "waiting for room" in said[0]["text"]
