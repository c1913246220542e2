"""Inputs of a run: fingerprints of every file that it reads, so that a resumed run notices what changed.

``inputs.json`` lists them by the recipe's key. A file whose size and modification time are those of the record is
trusted; any other is hashed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from burnish.catalogue import store
from burnish.data.files import FORMATS
from burnish.errors import BurnishError, InputError, one_line
from burnish.protocols import Observer
from burnish.run.code import INSTALLED
from burnish.run.folder import INPUTS, Run
from burnish.system.files import json_text, regular_bytes

LARGE = 1 << 24
"""Files of more bytes are hashed in a thread beside the first measurement."""
CHUNK = 1 << 20

Record = dict[str, Any]
"""``size`` (bytes), ``modified`` (ns), ``sha256`` and perhaps ``rows`` of a file; only ``sha256`` of another source."""
Sources = Mapping[str, Mapping[str, Path | str]]
"""Recipe key -> name of a file or another source -> its path, or the text that stands for its content."""


class Inputs:
    """The inputs of a run that begins or is resumed. ``accept`` goes on although some have changed, with a warning.

    Raises:
        InputError: a file of a resumed run has changed or is missing, and that is not accepted.
    """

    def __init__(self, run: Run, observer: Observer, *, fresh: bool, accept: bool = False) -> None:
        self.run, self.observer, self.accept = run, observer, accept
        self._roots = _roots(run.folder)
        self._kept: dict[str, dict[str, Record]] = {}
        self._accepted: list[Any] = []
        path = run.folder / INPUTS
        self._fresh = not path.exists()
        if self._fresh and not fresh:
            observer.message(
                "this run began before inputs were recorded, so a change of data, model or code cannot be noticed; "
                "they are recorded from now on",
                level="warning",
            )
        if not self._fresh:
            try:
                written = json.loads(path.read_text(encoding="utf-8"))
                self._kept, self._accepted = written["inputs"], written["accepted"]
                self._decide(list(_changes(self._kept, self._roots, run.folder)))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path} is damaged ({error}): delete it to record the inputs again") from error

    @contextmanager
    def recorded(self, sources: Sources) -> Iterator[None]:
        """Compare what the run reads now with the record, extend the record, and hash large files in a thread.

        Raises InputError if a resumed run reads what it did not read when it began, unless that is accepted.
        """
        changes = []
        for key, named in sources.items():
            files = self._kept.setdefault(key, {})
            known = {one["sha256"] for one in files.values()}
            for name, value in named.items():
                label = self._name(value) if isinstance(value, Path) else name
                before = files.get(label)
                if isinstance(value, Path):
                    if before is None:
                        large = value.stat().st_size > LARGE and self._fresh
                        files[label] = _stat(value) | {"sha256": ""} if large else fingerprint(value)
                        if not self._fresh and files[label]["sha256"] not in known:
                            changes.append(f"{key}: {value} was not read when the run began")
                    continue
                files[label] = {"sha256": hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()}
                if not self._fresh and before != files[label]:
                    changes.append(f"{key}: {name} has changed since {self.run.folder} began")
        self._decide(changes)
        self._write()
        thread = Thread(target=self._hash_large, name="inputs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _hash_large(self) -> None:
        waiting = [(files, name) for files in self._kept.values() for name, one in files.items() if not one["sha256"]]
        with suppress(OSError, BurnishError):  # what the training meets too, and reports
            for files, name in waiting:
                files[name] = fingerprint(_located(name, self._roots))
            if waiting:
                self._write()

    def _decide(self, changes: list[str]) -> None:
        if not changes:
            return
        if not self.accept:
            more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
            raise InputError(
                f"{changes[0]}{more}: restore it, or continue with --accept-changed-inputs "
                "(burnish.train: accept_changed_inputs=True)"
            )
        newest = next(reversed(self.run.checkpoints()), None)
        step = newest.step if newest else 0
        self._accepted.append({"step": step, "changes": changes})
        # A kill may have left half a line, which must be removed before appending.
        self.run.cut_back(newest)
        for text in changes:
            self.run.append("warnings.jsonl", [{"step": step, "kind": "inputs", "text": f"accepted: {text}"}])
            self.observer.message(f"accepted: {text}", level="warning")

    def _write(self) -> None:
        self.run.put(INPUTS, json_text({"inputs": self._kept, "accepted": self._accepted}))

    def _name(self, path: Path) -> str:
        """Return a path as text that holds on another machine: relative to the run, a cache or the packages."""
        path = path.absolute()
        for root, folder in reversed(self._roots.items()):
            for one in (path, path.resolve()):
                if one.is_relative_to(folder):
                    return f"<{root}>/{one.relative_to(folder).as_posix()}"
        return str(path)


def changed_inputs(run: Path) -> list[str]:
    """Return what of a run's recorded inputs is missing or has changed, for which ``--resume`` would refuse it."""
    path = run / INPUTS
    if not os.path.lexists(path):
        return []
    try:
        return list(_changes(json.loads(regular_bytes(path))["inputs"], _roots(run), run))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
        return [f"{path} is damaged ({one_line(error)[:200]}): delete it to record the inputs again"]


def _changes(kept: dict[str, dict[str, Record]], roots: Mapping[str, Path], run: Path) -> Iterator[str]:
    """Yield what has changed of recorded files, and bring the record up to date."""
    for key, files in kept.items():
        for name, before in [(name, one) for name, one in files.items() if "modified" in one]:
            path = _located(name, roots)
            if not path.is_file():
                del files[name]
                yield f"{key}: {path} is missing"
            elif _stat(path) != {"size": before["size"], "modified": before["modified"]}:
                files[name] = now = fingerprint(path)
                if now["sha256"] != before["sha256"]:
                    yield f"{key}: {path} has changed since {run} began ({_difference(before, now)})"


def _roots(run: Path) -> dict[str, Path]:
    """Return the folders that a record's names may be relative to."""
    return {"burnish": store.home().resolve(), "hub": _hub_cache(), **_installed(), "run": run.resolve()}


def _located(name: str, roots: Mapping[str, Path]) -> Path:
    root, closed, rest = name.removeprefix("<").partition(">/")
    return roots[root] / rest if name.startswith("<") and closed and root in roots else Path(name)


def fingerprint(path: Path) -> Record:
    """Return a file's size, modification time, SHA-256 and, for rows of text, its number of lines."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    counted = FORMATS.get(path.suffix.lower()) in ("jsonl", "csv")
    record = _stat(path)
    with path.open("rb") as file:
        if not counted:
            return record | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            lines, last = lines + chunk.count(b"\n"), chunk[-1:]
    return record | {"sha256": digest.hexdigest(), "rows": lines + (last != b"\n")}


def _stat(path: Path) -> Record:
    status = path.stat()
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _difference(before: Record, now: Record) -> str:
    for key, form in (("rows", "{} lines, now {}"), ("size", "{:,} bytes, now {:,}")):
        if key in before and before[key] != now.get(key):
            return form.format(before[key], now[key])
    return "other content of the same size"


def _installed() -> dict[str, Path]:
    return {f"packages{index or ''}": folder for index, folder in enumerate(dict.fromkeys(INSTALLED))}


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE).resolve()
