"""Manifests of checkpoints: what each file was when it was saved, and the run that it belongs to.

A checkpoint's ``manifest.json`` records size, SHA-256 and tensor shapes of each of its files, its step, the recipe, and
the lines and files of the run folder that resuming reads. Whatever differs later is named, and the checkpoint refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from burnish.catalogue.checkpoints import MANIFEST as MANIFEST
from burnish.errors import InputError
from burnish.run.lines import comparable, step_of, whole_lines
from burnish.system.confined import leads_inside
from burnish.system.file_records import FileRecord, file_damage, file_record
from burnish.system.files import open_regular, regular_bytes

BESIDE = {
    "evaluation/before.json": "the measurement before training",
    "chat_template.jinja": "the copy of the chat template",
}
"""Files that do not change once training has begun, and what they are; without them a resumed run has other bits."""
HASHED_AT_ONCE = 2
"""Threads that hash files. Each byte is read once, from memory: the file has just been written."""


class LineRecord(TypedDict):
    """The first lines of a file."""

    rows: int
    sha256: str


class Manifest(TypedDict):
    """Content of ``manifest.json``."""

    step: int
    files: dict[str, FileRecord]
    recipe: dict[str, Any]
    lines: dict[str, LineRecord]
    """Each .jsonl file of the run folder, up to where it reached."""
    beside: dict[str, FileRecord]
    """Files of the run folder that do not change."""


class FolderDigests:
    """SHA-256 of the files of a folder that is being written, computed in threads beside the writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(HASHED_AT_ONCE, "sha256")
        self._running: dict[str, Future[FileRecord]] = {}

    def __enter__(self) -> FolderDigests:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self) -> None:
        """Begin with the files that are new; they are complete."""
        for path in sorted(self.folder.rglob("*"), key=lambda path: -path.lstat().st_size):
            name = path.relative_to(self.folder).as_posix()
            if name not in self._running and path.is_file():
                self._running[name] = self._pool.submit(file_record, path)

    def records(self) -> dict[str, FileRecord]:
        """Return name -> record of every file, once all are hashed."""
        self.add()
        return {name: self._running[name].result() for name in sorted(self._running)}


class GrowingDigests:
    """SHA-256 of .jsonl files that grow by whole lines, each line hashed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, LineDigest] = {}

    def forget(self, name: str) -> None:
        """Begin again with a file that was rewritten."""
        self._kept.pop(name, None)

    def record(self, name: str) -> LineRecord | None:
        """Return the record of a file as it is now; None if there is none."""
        path = self.folder / name
        if not path.is_file():
            return None
        digest = self._kept.setdefault(name, LineDigest(name))
        with open_regular(path) as file:
            file.seek(digest.size)
            for line in file:
                digest.add(line)
        return digest.record()


class LineDigest:
    """SHA-256 over the lines of a .jsonl file; of metrics.jsonl without timings, so that equal runs have equal digests."""

    def __init__(self, name: str) -> None:
        self.rows, self.size = 0, 0
        self._metrics, self._hash = name == "metrics.jsonl", hashlib.sha256()

    def add(self, line: bytes) -> None:
        """Add a line with its end. Raises ValueError if it is a row of metrics and not JSON."""
        self.rows, self.size = self.rows + 1, self.size + len(line)
        if self._metrics:
            line = json.dumps(comparable(json.loads(line)), sort_keys=True).encode()
        self._hash.update(line)

    def record(self) -> LineRecord:
        """Return the record of the lines so far."""
        return {"rows": self.rows, "sha256": self._hash.hexdigest()}


def read_manifest(folder: Path) -> Manifest | None:
    """Return a checkpoint's manifest, None if it has none. Raises InputError if it is damaged."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        manifest: Manifest = json.loads(regular_bytes(path))
        for name in Manifest.__annotations__:
            if not isinstance(manifest[name], int if name == "step" else dict):  # type: ignore[literal-required]
                raise ValueError(f"its {name} is damaged")
        for key, records in (("size", "files"), ("rows", "lines"), ("size", "beside")):
            for place, one in manifest[records].items():  # type: ignore[literal-required]
                if not leads_inside(place):
                    raise ValueError(f"'{place}' leads out of the folder")
                if not (isinstance(one[key], int) and isinstance(one["sha256"], str)):
                    raise ValueError(f"a record has no {key} or no sha256")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return manifest


def files_damage(folder: Path, step: int, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the files of a checkpoint folder, each a sentence that begins with the path."""
    if manifest["step"] != step:
        yield f"{folder} was saved as step {manifest['step']}: it has been renamed"
    present = {path.relative_to(folder).as_posix(): path for path in _entries(folder)}
    recorded = manifest["files"]
    for name in sorted(recorded.keys() - present.keys()):
        yield f"{folder / name} is missing"
    for name in sorted(present.keys() - recorded.keys() - {MANIFEST}):
        yield f"{folder / name} is not a file of this checkpoint"
    both = sorted(recorded.keys() & present.keys())
    with ThreadPoolExecutor(HASHED_AT_ONCE, "sha256") as pool:
        compare: Callable[[str], str] = lambda name: file_damage(present[name], recorded[name])  # noqa: E731
        yield from filter(None, pool.map(compare, both))


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all below a folder that is not a folder, links to folders included."""
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)
        yield from (path for name in folders if (path := Path(parent) / name).is_symlink())


def lines_until(path: Path, step: int, manifest: Manifest | None) -> Iterator[bytes]:
    """Yield the lines of a .jsonl file of a run up to a step, 0 for before the first one.

    With the manifest of that step's checkpoint, they are among those that it proves; what follows is measured or
    trained again. Warnings come at any time, those of the start with step 0.
    Raises InputError if a line has no step.
    """
    warnings, proven = path.name == "warnings.jsonl", None
    if manifest and not warnings:
        record = manifest["lines"].get(path.name)
        proven = record["rows"] if record else 0
    for line, row in islice(whole_lines(path), proven):
        if (0 if warnings else 1) <= step_of(path, row) <= step:
            yield line


def run_damage(run: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what a run folder has lost since a checkpoint was saved: lines, and files that the run needs."""
    yield from filter(None, (_lines_damage(run / name, record) for name, record in manifest["lines"].items()))
    for name, record in manifest["beside"].items():
        if text := file_damage(run / name, record):
            yield f"{text} ({BESIDE.get(name, 'which the run needs')})"


def _lines_damage(path: Path, record: LineRecord) -> str:
    digest = LineDigest(path.name)
    try:
        with open_regular(path) as file:
            for number, line in enumerate(islice(file, record["rows"]), start=1):
                try:
                    json.loads(line)
                    digest.add(line)
                except (ValueError, AttributeError, RecursionError) as error:
                    return f"{path}, line {number}: not JSON ({error}); restore it, or delete the line"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if digest.rows < record["rows"]:
        return f"{path} has lost lines: {digest.rows:,} are left of {record['rows']:,}"
    return "" if digest.record() == record else f"{path} has other lines than were saved: its SHA-256 differs"
