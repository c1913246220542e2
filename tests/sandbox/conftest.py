"""What the sandbox's tests share: what is left behind, and a copy of the package."""

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


def children(of: int) -> set[int]:
    """Processes, zombies among them, whose parent is the given one."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                if int(stat.read().rpartition(")")[2].split()[1]) == of:
                    found.add(int(name))
        except OSError:
            continue
    return found


@pytest.fixture
def children_of() -> Callable[[int], set[int]]:
    return children


@pytest.fixture
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test, once what starts programs is gone, no process, zombie, open descriptor or file is there that was not
    before."""
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
    """The packages of the layer wasm are not installed, whether or not they are."""
    monkeypatch.setattr(wasm_files.importlib.util, "find_spec", lambda _: None)


@pytest.fixture(params=(NAMESPACES, LANDLOCK))
def layer(request: pytest.FixtureRequest) -> str:
    """Each of Linux's strong layers; one that does not stand here is skipped."""
    try:
        layers.standing(request.param)
    except layers.Unavailable as error:
        pytest.skip(f"NO SUCH LAYER HERE: {error}")
    return str(request.param)


@pytest.fixture
def copy_of_the_package() -> Callable[[Path], Path]:
    """Copies burnish without what the sandbox does not need, to be changed or to be read by another user."""

    def copied(place: Path) -> Path:
        (place / "burnish").mkdir()
        for name in ("__init__.py", "errors.py"):
            shutil.copy(PACKAGE / name, place / "burnish")
        shutil.copytree(
            PACKAGE / "sandbox", place / "burnish" / "sandbox", ignore=shutil.ignore_patterns("__pycache__")
        )
        return place / "burnish" / "sandbox"

    return copied


@pytest.fixture
def outlives_nobody() -> Callable[[Iterable[int]], None]:
    """Fails where one of the processes, whose parent was killed, is still there after ten seconds."""

    def ended(processes: Iterable[int]) -> None:
        for _ in range(500):
            if not any(os.path.exists(f"/proc/{process}") for process in processes):
                return
            time.sleep(0.02)
        pytest.fail("it outlives its parent")

    return ended
