"""Models whose file comes in pieces, and under terms that have to be accepted."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from burnish.catalogue import convert, entries, fetch, home, lookup, model_folder, names, resolve_model, store
from burnish.catalogue.entries import ENTRIES, CatalogueEntry, CatalogueFile
from burnish.errors import BurnishError, InputError

PIECES = {"tiny.part1": b"GGUF and the ", "tiny.part2": b"rest of it"}
FETCHING = sys.modules["burnish.catalogue.fetch"]


def entry(name: str, content: bytes, **more) -> CatalogueEntry:
    file = CatalogueFile(f"pack/{name}", hashlib.sha256(content).hexdigest(), len(content))
    facts = {"kind": "part", "package": "pack", "version": "1", "wheel": "pack-1-py3-none-any.whl", "wheel_size": 1}
    said = {"wheel_sha256": "0" * 64, "licence": "Tiny Terms", "notice": "bound by the Tiny Terms", "description": "?"}
    return CatalogueEntry(name=name, files=(file,), terms="tiny-terms", **{**facts, **said, **more})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A model in two pieces, as if its wheels were installed; converting it copies it."""
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    whole = b"".join(PIECES.values())
    made = entry("tiny", b"the terms", kind="model", parts=tuple(PIECES),
                 whole=CatalogueFile("tiny.gguf", hashlib.sha256(whole).hexdigest(), len(whole)))  # fmt: skip
    parts = [entry(name, content) for name, content in PIECES.items()]
    monkeypatch.setattr(entries, "ENTRIES", (made, *parts))
    for name, content in {"tiny": b"the terms", **PIECES}.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(FETCHING, "_installed", lambda one: {one.files[0].path: tmp_path / one.name})

    def copied(one: CatalogueEntry, weights: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(weights.read_bytes())

    monkeypatch.setattr(convert, "_convert", copied)
    return made


def test_pieces_make_the_file(model: CatalogueEntry) -> None:
    store.accept("tiny-terms")
    folder = model_folder("tiny")
    assert (folder / "weights").read_bytes() == b"GGUF and the rest of it"
    assert not [path for path in (home() / "tmp").glob("*/*")]


def test_a_piece_that_does_not_fit_is_refused(model: CatalogueEntry, tmp_path: Path) -> None:
    store.accept("tiny-terms")
    (tmp_path / "tiny.part2").write_bytes(b"rest of another")
    with pytest.raises(BurnishError, match="pieces do not make the file of the catalogue"):
        model_folder("tiny")
    assert not [path for path in (home() / "models").glob("*")] and not [path for path in (home() / "tmp").glob("*/*")]


def test_terms_come_first(model: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    # Installed by pip or not.
    for ask in (lambda: resolve_model("tiny"), lambda: fetch("tiny", offline=True), lambda: fetch("tiny.part2")):
        with pytest.raises(
            InputError, match=r"bound by the Tiny Terms.*: burnish fetch tiny --accept-licence tiny-terms$"
        ):
            ask()
    assert not home().exists()
    store.accept("tiny-terms")
    monkeypatch.setattr(FETCHING, "_installed", lambda one: None)
    with pytest.raises(InputError, match="is not on this machine and offline is on"):
        fetch("tiny", offline=True)


def test_the_command_accepts_what_is_asked_for(model: CatalogueEntry, capsys: pytest.CaptureFixture[str]) -> None:
    from burnish.cli import catalogue as cli

    with pytest.raises(InputError, match="--accept-licence other: 'tiny' is under the terms 'tiny-terms'"):
        cli.fetch("tiny", accept_licence="other", quiet=True)
    assert not store.accepted("tiny-terms")
    cli.fetch("tiny", accept_licence="tiny-terms", quiet=True)
    assert store.accepted("tiny-terms")
    assert "models/tiny-" in capsys.readouterr().out


def test_pieces_are_not_offered() -> None:
    assert any(one.kind == "part" for one in ENTRIES)
    assert not any(".part" in name for name in [*names(), *names("model")])
    with pytest.raises(InputError) as error:
        lookup("gemma3-270m.part9")
    assert ".part1" not in str(error.value)
    gemma = lookup("gemma3-270m")
    assert gemma.weights.size == sum(lookup(part).files[0].size for part in gemma.parts)
