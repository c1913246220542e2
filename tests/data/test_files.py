"""Patterns of files, and compressed files that decompress to more than memory has."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from burnish.data import files
from burnish.data.files import matching_files, opened
from burnish.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "._a.jsonl", "below/c.jsonl", ".cache/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("loop", "other"):  # with two, there are 2 ** 40 paths
        (tmp_path / name).symlink_to(".")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "below/c.jsonl"]),
        ("**", ["a.jsonl", "b.jsonl", "below/c.jsonl"]),
        ("[b-z].jsonl", ["b.jsonl"]),
        ("loop/b*/c.jsonl", ["loop/below/c.jsonl"]),
        (".cache/*", [".cache/d.jsonl"]),
        ("*/.cache/*", ["loop/.cache/d.jsonl", "other/.cache/d.jsonl"]),
    ],
)
def test_a_pattern_matches_files_but_no_hidden_ones(folder: Path, pattern: str, names: list[str]) -> None:
    assert [str(file.relative_to(folder)) for file in matching_files(folder / pattern)] == names


@pytest.mark.parametrize("pattern", ["*.csv", "folder*.jsonl"])
def test_a_pattern_without_a_file_is_refused(folder: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="no file matches this pattern"):
        matching_files(folder / pattern)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    with (
        pytest.raises(InputError, match="cannot be read: Too many levels of symbolic links"),
        opened(tmp_path / "a.jsonl"),
    ):
        pass


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_decompression_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    content = bytes(2**22)
    path = tmp_path / f"a.jsonl{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        library = pytest.importorskip("zstandard", reason="pip install 'burnish[zstd]'")
        path.write_bytes(library.compress(content))
    with opened(path) as file:
        assert file.read() == content, "small files may have any ratio"
    monkeypatch.setattr(files, "LEAST_LIMIT", 2**20)
    with pytest.raises(InputError, match="decompresses to more than 1,048,576 bytes"), opened(path) as file:
        file.readline()
