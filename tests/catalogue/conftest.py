"""A package index of one wheel, and an empty cache."""

import os
from pathlib import Path

import pytest

from burnish.catalogue import entries
from burnish.catalogue.entries import CatalogueEntry
from tests.catalogue.wheels import COPY, FETCHING, MEMBERS, REAL_PIP, build_wheel, entry_for, stub_pip


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that is pip's whole index; the cache next to it is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def tiny(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """Return the only catalogue entry, two small files in a wheel of the index; a stub replaces pip."""
    entry = entry_for(build_wheel(index, MEMBERS), MEMBERS)
    monkeypatch.setattr(entries, "ENTRIES", (entry,))
    stub_pip(monkeypatch, tmp_path, COPY)
    return entry


@pytest.fixture
def real_pip(tiny: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FETCHING, "_pip", REAL_PIP)
