"""A process that looks at one machine of a cluster, for ``burnish doctor --ray``."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

PACKAGES = ("ray", "burnish", "torch", "transformers")
"""Packages whose versions a sampler and the driver are to share."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a process on a machine sees.

    Attributes:
        versions: of Python and of ``PACKAGES``; None for one that is not installed.
        memory: bytes that are free.
        shared_memory: bytes of /dev/shm, where the object store is, or None if there is no such folder.
        model: name and size in bytes of each of the model's files; empty if the hub has them, or there is no file.
        fault: why the model cannot be read, or "".
    """

    versions: dict[str, str | None]
    memory: int
    shared_memory: int | None
    model: tuple[tuple[str, int], ...]
    fault: str


class NodeProbe:
    """The work of one process, on the machine that it was placed on."""

    def look(self, model: str | None, folder: str, engine: str) -> NodeFacts:
        """Return what this machine has. ``model`` is the recipe's, looked for from the driver's working ``folder``."""
        from burnish.system.machine import memory

        versions = {"python": sys.version.split()[0], **{name: installed(name) for name in PACKAGES}}
        if engine == "vllm":
            versions["vllm"] = "installed" if find_spec("vllm") else None
        files: tuple[tuple[str, int], ...] = ()
        fault = ""
        if model is not None:
            files, fault = readable_model(model, folder)
        shared = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None
        return NodeFacts(versions, (memory() or (0, 0))[1], shared, files, fault)

    def receive(self, block: Sequence[Any]) -> float:
        """Fetch a block whose reference is in a list, read it, and return the seconds that this took."""
        import ray

        begin = time.perf_counter()
        int(ray.get(block[0]).sum())
        return time.perf_counter() - begin


def installed(package: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version" if find_spec(package) else None


def readable_model(model: str, folder: str) -> tuple[tuple[tuple[str, int], ...], str]:
    """Return name and size of a model's files, the first byte of each having been read, and why it cannot be read, or "".

    Nothing is downloaded. Of a name of the catalogue or the hub that is not in this machine's cache there are no files,
    and no fault.
    """
    from burnish.catalogue.entries import names
    from burnish.catalogue.model_files import model_files
    from burnish.errors import BurnishError, one_line

    known = model in names()
    if not known and os.path.isdir(os.path.join(folder, model)):
        model = os.path.join(folder, model)
    try:
        files = model_files(model, offline=True)
        for file in files:
            with file.open("rb") as opened:
                opened.read(1)
        return tuple((file.name, file.stat().st_size) for file in files), ""
    except (OSError, BurnishError) as error:
        return (), "" if known else one_line(error)[:300]
