"""Fixtures of the sandbox's tests: a check for leftovers, the layers, and a copy of the package."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from burnish.sandbox import layers
from burnish.sandbox import run as run_module
from burnish.sandbox.names import LANDLOCK, NAMESPACES
from burnish.sandbox.wasm import files as wasm_files

PACKAGE = Path(run_module.__file__).parents[1]


def descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def children(parent: int) -> set[int]:
    """Return the child processes of a process, including zombies."""
    processes = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == parent:
                    processes.add(int(name))
        except OSError:
            continue
    return processes


@pytest.fixture
def children_of() -> Callable[[int], set[int]]:
    return children


@pytest.fixture
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that the test leaves no process, zombie, open descriptor or file behind once the runners are closed."""
    if sys.platform != "linux":
        yield
        return
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    layers.close()
    before = children(os.getpid()), descriptors()
    yield
    layers.close()
    assert (children(os.getpid()), descriptors()) == before
    assert os.listdir(own) == []
    assert not [path for path in ("/tmp", "/dev/shm", "/var/tmp") if os.path.lexists(f"{path}/burnish-breach")]


@pytest.fixture
def no_wasm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the packages of the layer wasm look uninstalled."""
    monkeypatch.setattr(wasm_files.importlib.util, "find_spec", lambda _: None)


@pytest.fixture(params=(NAMESPACES, LANDLOCK))
def layer(request: pytest.FixtureRequest) -> str:
    """Each strong layer of Linux. Skips the test for a layer that does not work here."""
    try:
        layers.get_runner(request.param)
    except layers.Unavailable as error:
        pytest.skip(f"NO SUCH LAYER HERE: {error}")
    return str(request.param)


@pytest.fixture
def copy_of_the_package() -> Callable[[Path], Path]:
    """Copy the parts of burnish that the sandbox needs, to be modified or read by another user."""

    def copied(folder: Path) -> Path:
        (folder / "burnish").mkdir()
        for name in ("__init__.py", "errors.py"):
            shutil.copy(PACKAGE / name, folder / "burnish")
        shutil.copytree(
            PACKAGE / "sandbox", folder / "burnish" / "sandbox", ignore=shutil.ignore_patterns("__pycache__")
        )
        return folder / "burnish" / "sandbox"

    return copied


@pytest.fixture
def outlives_nobody() -> Callable[[Iterable[int]], None]:
    """Fail if one of the processes, whose parent was killed, still exists after ten seconds."""

    def ended(processes: Iterable[int]) -> None:
        for _ in range(500):
            if not any(os.path.exists(f"/proc/{process}") for process in processes):
                return
            time.sleep(0.02)
        pytest.fail("a process outlives its parent")

    return ended
