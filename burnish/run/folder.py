"""The run folder: atomic writes, checkpoints and resuming.

Whenever a run is killed, its folder holds complete checkpoints and complete lines up to some step. Resuming drops the
lines after the newest checkpoint; repeated steps give the same bits, since randomness is a function of seed and step.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

from burnish.catalogue.local_models import START as START
from burnish.data.objects import HELD_OUT_ROWS, ROWS
from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import Job
from burnish.run.history import HISTORY, lasting, parsed
from burnish.run.lines import comparable as comparable
from burnish.run.lines import never_by_link, raw_lines
from burnish.run.lines import read_lines as read_lines
from burnish.run.manifest import (
    BESIDE,
    MANIFEST,
    FolderDigests,
    GrowingDigests,
    Manifest,
    lines_until,
    read_manifest,
)
from burnish.run.trust import begun_here, with_recipe
from burnish.system.confined import refuse_escapes
from burnish.system.file_records import FileRecord, file_record
from burnish.system.files import (
    explained,
    json_lines,
    new_folder,
    remove,
    sync_file,
    sync_tree,
    write_json,
    write_parts,
    write_text,
)

LINES = ("metrics.jsonl", "samples.jsonl", "warnings.jsonl", "held_out.jsonl")
BROKEN_ROWS = "broken_rows.jsonl"
"""Lists the unusable rows of a user's data, with positions and reasons. Written only if there are any."""
CHAT_TEMPLATE = "chat_template.jinja"
"""A copy of the user's own chat template, so that a resumed run does not depend on the file."""
LOCK = ".lock"
BEST_MODEL = "model_best"
"""The link to the model that ``checkpoint.keep_best`` keeps."""
INPUTS = "inputs.json"
"""Fingerprints of the files that the run reads."""
EARLY_FILES = (BROKEN_ROWS, CHAT_TEMPLATE, INPUTS, ROWS, HELD_OUT_ROWS)
"""Files that may be written before training begins."""
OWN_NAMES = ("environment.json", HISTORY, START, *EARLY_FILES, *LINES)
"""Names that only a run may have written: a file found there would be read, cut or deleted as the run's own."""
BEFORE = "evaluation/before.json"
"""The measurement before training."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk: ``model/``, ``optimizer.safetensors`` or ``shards/``, and ``state.json``."""

    step: int
    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """The learner's state besides tensors. Raises InputError if it cannot be read."""
        path = self.folder / "state.json"
        try:
            state: Any = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(state, dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: the checkpoint is damaged ({error}); delete {self.folder} to resume from an older one"
            ) from error
        return state


class Run:
    """A run folder, locked by one process at a time; ``verb`` is the command that resumes the run."""

    def __init__(self, folder: Path, verb: str = "train") -> None:
        self.folder = folder
        self.verb = verb
        self.resume_with = ""
        """Command that resumes the run, if it takes more than the folder."""
        self.fresh = False
        """Whether this process created the folder."""
        self._above: list[Path] = []
        """Folders above it that this process made, the nearest first."""
        self._recipe_before: str | None = None
        """Content of recipe.toml before an extension that may be undone."""
        self.proved: set[Path] = set()
        """Checkpoints that this process has written, or held against their manifests."""
        self._grown = GrowingDigests(folder)
        refuse_escapes(folder)
        from filelock import FileLock, Timeout  # slow

        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder}: another process is working on this run; wait for it or stop it first"
            ) from error
        except NotImplementedError as error:
            raise BurnishError(
                f"{folder}: this file system does not support locks: choose a run folder on a local disk"
            ) from error

    @classmethod
    def create(
        cls,
        recipe: Job,
        folder: Path | None = None,
        environment: Mapping[str, Any] | None = None,
        *,
        verb: str = "train",
        files: Mapping[str, str] | None = None,
    ) -> Run:
        """Create a run folder; ``files`` are further files of it, name -> content.

        Raises InputError if it already holds a run, or a file that would be taken for one of the run, and BurnishError if
        it cannot be made.
        """
        path = folder or cls.unused_folder(recipe)
        if (path / "recipe.toml").exists():
            raise InputError(f"{path} already holds a run: choose another --run-dir, or resume it with --resume {path}")
        named = [one for name in OWN_NAMES if (one := path / name).exists()]
        if foreign := [*named, *(path / "checkpoints").glob("*"), *(path / "evaluation").glob("*")]:
            raise InputError(f"{foreign[0]} is not of a run, but has the name of a run's: choose another --run-dir")
        made = [parent for parent in path.absolute().parents if not parent.exists()]
        with explained(f"cannot make the run folder {path}"):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            (path / "evaluation").mkdir(exist_ok=True)
            run = cls(path, verb)
            run.fresh, run._above = True, made
            write_json(path / "environment.json", environment or {})
            for name, text in (files or {}).items():
                write_text(path / name, text)
            written = recipe.toml()
            write_text(path / HISTORY, begun_here(written).text())
            # The recipe comes last: a folder with a recipe is a run.
            write_text(path / "recipe.toml", written)
        return run

    @staticmethod
    def unused_folder(recipe: Job) -> Path:
        """Make and return the folder of a run without a folder of its own: ``runs/<name>-<time>``."""
        return _make_unused(Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}")

    @classmethod
    def open(cls, folder: Path, verb: str = "train") -> Run:
        """Open an existing run folder. Raise InputError if it is not one."""
        if not (folder / "recipe.toml").is_file():
            raise InputError(f"{folder} is not a run folder: it has no recipe.toml")
        with explained(f"cannot write to the run folder {folder}"):
            return cls(folder, verb)

    def close(self) -> None:
        self._lock.release()

    @property
    def began(self) -> datetime | None:
        """When the run began, as environment.json has it; None for runs of earlier versions."""
        try:
            environment = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
            return datetime.fromisoformat(environment["began"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a .jsonl file and hand them to the operating system."""
        path = self.folder / name
        remaining = memoryview(json_lines(rows, path))
        # Unbuffered: a buffer would retry on close and leave part of what did not fit.
        with (
            explained(f"cannot write {path}", self.advice_on_full_disk),
            open(path, "ab", buffering=0, opener=never_by_link) as file,
        ):
            end = file.tell()
            try:
                while remaining:
                    remaining = remaining[file.write(remaining) :]
            except OSError:
                # Half a line would corrupt the next one.
                with suppress(OSError):
                    file.truncate(end)
                raise

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a .jsonl file, without a last line that was cut off by a kill."""
        return list(read_lines(self.folder / name))

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints, oldest first."""
        return find_checkpoints(self.folder)

    def save_checkpoint(
        self,
        step: int,
        state: Mapping[str, Any],
        write: Callable[[Path], Iterable[None] | None],
        keep: int,
        spared: Collection[int] = (),
    ) -> Checkpoint:
        """Write checkpoints/step-N atomically, then delete all but the newest ``keep`` and those of ``spared`` steps.

        ``write`` fills a folder with ``model/`` and ``optimizer.safetensors``; it may yield whenever the files so far
        are complete, so that they are hashed beside the writing of the next. Raises BurnishError if the checkpoint cannot
        be written; older checkpoints are unchanged.
        """
        target = self.folder / "checkpoints" / f"step-{step}"
        with explained(f"cannot save {target}", self.advice_on_full_disk):
            # An existing one is complete and has the same bits: an interrupt came right after it was written.
            if not (target / "state.json").is_file():
                shutil.rmtree(target, ignore_errors=True)
                with new_folder(target) as temporary, FolderDigests(temporary) as digests:
                    (temporary / "model").mkdir()
                    for _ in write(temporary) or ():
                        digests.add()
                    write_json(temporary / "state.json", {"step": step, **state})
                    digests.add()
                    # If the checkpoint survives a power cut, the lines up to its step must too.
                    for name in LINES:
                        sync_file(self.folder / name)
                    # The disk is waited for while the threads hash.
                    sync_tree(temporary)
                    write_json(temporary / MANIFEST, self._manifest(step, digests.records()))
                self.proved.add(target)
            self._point_model_at(Checkpoint(step, target))
            for old in self.checkpoints()[:-keep]:
                if old.step not in spared:
                    # Renamed first: a half-deleted checkpoint must never look complete.
                    temporary = old.folder.with_name(f".{old.folder.name}.partial")
                    os.rename(old.folder, temporary)
                    shutil.rmtree(temporary, ignore_errors=True)
        return Checkpoint(step, target)

    def _manifest(self, step: int, files: Mapping[str, FileRecord]) -> Manifest:
        beside = {name: file_record(path) for name in BESIDE if (path := self.folder / name).is_file()}
        lines = {name: one for name in LINES if (one := self._grown.record(name)) is not None}
        return {"step": step, "files": dict(files), "recipe": self.recipe, "lines": lines, "beside": beside}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Content of the recipe that this process trains by, as it was when training began."""
        path = self.folder / "recipe.toml"
        return lasting(parsed(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _point_model_at(self, checkpoint: Checkpoint, name: str = "model") -> None:
        link = self.folder / name
        if link.is_dir() and not link.is_symlink():  # a copy of the run, made with its links resolved
            if not any(_same_files(link, one.folder / "model") for one in self.checkpoints()):
                raise BurnishError(
                    f"{link} is a folder with other files than a checkpoint's, in place of the run's link: move it away"
                )
            shutil.rmtree(link)
        fresh = self.folder / f".{name}.partial"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("checkpoints") / checkpoint.folder.name / "model")
        os.replace(fresh, link)

    def choose_model(self, checkpoint: Checkpoint, name: str = "model") -> None:
        """Make a checkpoint's model the run's, or its ``model_best``. Raise BurnishError if the link cannot be written."""
        with explained(f"cannot write to the run folder {self.folder}", self.advice_on_full_disk):
            self._point_model_at(checkpoint, name)

    def linked_step(self, name: str) -> int | None:
        """Return the step whose model a link of the folder names; None without such a link."""
        link = self.folder / name
        match = re.fullmatch(r"checkpoints/step-(\d+)/model", os.readlink(link)) if link.is_symlink() else None
        return int(match[1]) if match else None

    def cut_back(self, checkpoint: Checkpoint | None) -> None:
        """Delete later lines and leftovers of a kill: return to a checkpoint, or to before the first step (None)."""
        step, manifest = (checkpoint.step, read_manifest(checkpoint.folder)) if checkpoint else (0, None)
        with explained(f"cannot write to the run folder {self.folder}", self.advice_on_full_disk):
            for name in LINES:
                path = self.folder / name
                self._grown.forget(name)
                if path.exists():
                    write_parts(path, lines_until(path, step, manifest))
            for leftover in [*self.folder.glob(".*.partial"), *(self.folder / "checkpoints").glob(".*.partial")]:
                remove(leftover)
            if checkpoint:
                # The run may have been killed after writing the checkpoint and before linking its model.
                self._point_model_at(checkpoint)

    def go_back(self, checkpoint: Checkpoint | None) -> None:
        """Delete everything newer than a checkpoint, or all that the run has measured and trained (None)."""
        manifest = read_manifest(checkpoint.folder) if checkpoint else None
        with explained(f"cannot write to the run folder {self.folder}", self.advice_on_full_disk):
            for path in (self.folder / "checkpoints").iterdir():
                if checkpoint is None or path.name not in {f"step-{step}" for step in self._until(checkpoint)}:
                    remove(path)
            for name in LINES if manifest or not checkpoint else ():
                self._grown.forget(name)
                record = manifest["lines"].get(name) if manifest else None
                if record is None:
                    remove(self.folder / name)
                else:
                    write_parts(self.folder / name, islice(raw_lines(self.folder / name), record["rows"]))
            if checkpoint is None:
                for name in (BEFORE, "model", BEST_MODEL):
                    remove(self.folder / name)
            elif self.linked_step(BEST_MODEL) not in self._until(checkpoint):
                remove(self.folder / BEST_MODEL)

    def _until(self, checkpoint: Checkpoint) -> list[int]:
        return [one.step for one in self.checkpoints() if one.step <= checkpoint.step]

    def extend(self, recipe: Job) -> None:
        """Replace the recipe by a longer one, for good once training goes on (``keep_extension``)."""
        self._recipe_before = (self.folder / "recipe.toml").read_text(encoding="utf-8")
        self.change_recipe(recipe)

    def change_recipe(self, recipe: Job) -> None:
        """Replace the recipe by one that has the same results so far."""
        written = recipe.toml()
        # The history has it first: a kill in between leaves the recipe as it was.
        if history := with_recipe(self.folder, written):
            self.put(HISTORY, history.text())
        self.put("recipe.toml", written)

    def keep_extension(self) -> None:
        self._recipe_before = None

    def undo_extension(self) -> None:
        """Restore the recipe before an extension, unless training has gone on: a second try would extend it again."""
        if self._recipe_before is not None:
            self.put("recipe.toml", self._recipe_before)

    def put(self, name: str, text: str) -> None:
        """Write a file of the folder atomically. Raise BurnishError if that fails."""
        self._grown.forget(name)
        with explained(f"cannot write {self.folder / name}", self.advice_on_full_disk):
            write_text(self.folder / name, text)

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return self.resume_with or f"burnish {self.verb} --resume {shlex.quote(str(self.folder))}"

    @property
    def advice_on_full_disk(self) -> str:
        return f"make room, then resume with: {self.resume_command}"

    def discard(self) -> None:
        """Delete what a run wrote that never began; other files in the folder stay, such as what rewards printed."""
        self.close()
        with suppress(OSError):
            for name in ("recipe.toml", "environment.json", HISTORY, LOCK, BEFORE, *LINES, *EARLY_FILES):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / START, ignore_errors=True)
            above = [Path("runs")] if self.folder.parent == Path("runs") else self._above
            for path in (*(self.folder / name for name in ("checkpoints", "evaluation", ".")), *above):
                path.rmdir()


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run folder, oldest first."""
    checkpoints = [
        Checkpoint(int(match[1]), path)
        for path in (run / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(0|[1-9][0-9]{0,17})", path.name)) and (path / "state.json").is_file()
    ]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def _make_unused(path: Path) -> Path:
    """Make the folder, with a number appended if the name is taken, and return its path."""
    with explained(f"cannot make the run folder {path}"):
        for number in count(1):
            numbered = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                numbered.mkdir(parents=True)
                return numbered
    raise AssertionError("unreachable")


def _same_files(folder: Path, other: Path) -> bool:
    sizes = ({path.relative_to(root): path.stat().st_size for path in root.rglob("*")} for root in (folder, other))
    return next(sizes) == next(sizes)
