"""Record of everything besides the recipe that a run's result may depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from burnish.system.machine import processor


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def environment_record(*, threads: int | None, seed: int) -> Mapping[str, Any]:
    """Return versions, hardware, git commit, seed and the time, the content of ``environment.json``."""
    import torch

    versions = {}
    for package in ("burnish", "torch", "transformers", "tokenizers", "peft", "sacrebleu", "numpy", "numba"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    checkout = Path(__file__).parents[2]
    commit = "unknown"
    # An installed burnish may lie inside another repository, whose commit says nothing.
    if (checkout / ".git").exists():
        with suppress(OSError, subprocess.CalledProcessError):
            command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "git_commit": commit,
        "seed": seed,
        "began": datetime.now().isoformat(timespec="seconds"),
    }
