"""Fetching while other processes fetch, die or are interrupted: a file appears whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.catalogue import fetch, home, store
from burnish.catalogue.entries import CatalogueEntry
from burnish.errors import InputError
from tests.catalogue.wheels import FETCHING, MEMBERS, ROOT, leftovers, stub_pip
from tests.fakes import RecordingObserver

CHILD = """
import json, sys
from burnish.catalogue import entries, fetch, home, store
from burnish.catalogue.entries import CatalogueEntry, CatalogueFile
fields = json.loads(sys.argv[1])
fields["files"] = tuple(CatalogueFile(**file) for file in fields["files"])
entries.ENTRIES = (CatalogueEntry(**fields),)
fetching = sys.modules["burnish.catalogue.fetch"]
class Watcher:
    def message(self, text, level="info"): print(text, flush=True)
    def progress(self, phase, done, total): pass
"""


def child(entry: CatalogueEntry, code: str) -> "subprocess.Popen[str]":
    fields = {name: getattr(entry, name) for name in CatalogueEntry.__dataclass_fields__}
    fields["files"] = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in entry.files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pip_line = f"fetching._pip = lambda: {FETCHING._pip()!r}\n"
    command = [sys.executable, "-c", CHILD + pip_line + code, json.dumps(fields)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    """Waits for what another process does; the limit only ends a test that hangs."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the other process never got there")


@pytest.mark.slow
def test_two_at_once_download_once(tiny: CatalogueEntry, tmp_path: Path) -> None:
    code = f"""
real = fetching._download
def counted(*arguments):
    with open({str(tmp_path / "downloads")!r}, "a") as file: file.write("x")
    return real(*arguments)
fetching._download = counted
print("ready", flush=True)
print(sorted(str(path) for path in fetch("tiny", observer=Watcher()).values()))
"""
    both = [child(tiny, code), child(tiny, code)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0].splitlines()[-1] == said[1][0].splitlines()[-1]
    assert (tmp_path / "downloads").read_text() == "x"
    assert {path: file.read_bytes() for path, file in fetch("tiny", offline=True).items()} == MEMBERS


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["_download", "_extract", "publish"])
def test_killed_midway_leaves_nothing_to_mistake(tiny: CatalogueEntry, tmp_path: Path, moment: str) -> None:
    module = "store" if moment == "publish" else "fetching"
    # At each moment half of the work lies on the disk; the process then waits to be killed.
    code = f"""
import pathlib, time
def half(*arguments):
    folder = next((home() / "tmp" / "tiny").iterdir())
    (folder / "files" / "tinypack").mkdir(parents=True, exist_ok=True)
    (folder / "files" / "tinypack" / "notes.txt").write_bytes(b"half")
    print("half", flush=True)
    while True: time.sleep(1)
{module}.{moment} = half
fetch("tiny")
"""
    process = child(tiny, code)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "half\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(leftovers()) == 1
    with pytest.raises(InputError, match="not on this machine"):
        fetch("tiny", offline=True)
    assert {path: file.read_bytes() for path, file in fetch("tiny").items()} == MEMBERS
    assert leftovers() == []


@pytest.mark.slow
def test_one_waits_for_the_other_and_says_so(tiny: CatalogueEntry) -> None:
    with store.workplace("tiny", "downloading tiny"):
        process = child(tiny, 'fetch("tiny", observer=Watcher())')
        assert process.stdout is not None
        first = process.stdout.readline()
    rest, errors = process.communicate(timeout=60)
    assert (first, process.returncode) == ("waiting: another process is downloading tiny\n", 0), errors
    assert rest.startswith("fetched tiny")


@pytest.mark.slow
def test_a_full_disk_midway(tiny: CatalogueEntry, real_pip: None) -> None:
    # A limit on the size of a file stands in for the full disk: the kernel refuses the write in the same way.
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    fetch("tiny")
except Exception as error:
    print(type(error).__name__, error)
"""
    process = child(tiny, code)
    said, errors = process.communicate(timeout=60)
    assert said.startswith("BurnishError downloading tiny: no space left in"), said + errors
    assert leftovers() == [] and not (home() / "files").exists()


def test_interrupted_pip_does_not_go_on_alone(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nimport time\nwhile True: time.sleep(1)\n"
    stub_pip(monkeypatch, tmp_path, code)

    class Interrupting(RecordingObserver):
        def progress(self, phase: str, done: int, total: int) -> None:
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", observer=Interrupting())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert leftovers() == []
