"""The run folder: atomic writes, checkpoints and resuming.

Whenever a run is killed, its folder holds complete checkpoints and complete lines up to some step. Resuming drops the
lines after the newest checkpoint; repeated steps give the same bits, since randomness is a function of seed and step.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from burnish.catalogue.convert import START as START
from burnish.data.objects import HELD_OUT_ROWS, ROWS
from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import Job
from burnish.system.files import explained, new_folder, sync_file, write_json, write_parts, write_text

LINES = ("metrics.jsonl", "samples.jsonl", "warnings.jsonl", "held_out.jsonl")
BROKEN_ROWS = "broken_rows.jsonl"
"""Lists the unusable rows of a user's data, with positions and reasons. Written only if there are any."""
CHAT_TEMPLATE = "chat_template.jinja"
"""A copy of the user's own chat template, so that a resumed run does not depend on the file."""
BEST_MODEL = "model_best"
"""The link to the model that ``checkpoint.keep_best`` keeps."""
INPUTS = "inputs.json"
"""Fingerprints of the files that the run reads."""
EARLY_FILES = (BROKEN_ROWS, CHAT_TEMPLATE, INPUTS, ROWS, HELD_OUT_ROWS)
"""Files that may be written before training begins."""
OWN_NAMES = ("environment.json", START, *EARLY_FILES, *LINES)
"""Names that only a run may have written: a file found there would be read, cut or deleted as the run's own."""
TIMINGS = ("time/", "tokens_per_second", "memory/")
"""Prefixes of the metrics that may differ between two runs of one recipe and seed."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk: ``model/``, ``optimizer.safetensors`` and ``state.json``."""

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
        self._recipe_before: str | None = None
        """Content of recipe.toml before an extension that may be undone."""
        from filelock import FileLock, Timeout  # slow

        self._lock = FileLock(folder / ".lock")
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
        with explained(f"cannot make the run folder {path}"):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            (path / "evaluation").mkdir(exist_ok=True)
            run = cls(path, verb)
            run.fresh = True
            write_json(path / "environment.json", environment or {})
            for name, text in (files or {}).items():
                write_text(path / name, text)
            # The recipe comes last: a folder with a recipe is a run.
            write_text(path / "recipe.toml", recipe.toml())
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
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        # Lone surrogates (half an emoji, cut off at the token limit) cannot be written as UTF-8.
        remaining = memoryview(text.encode("utf-8", "backslashreplace"))
        path = self.folder / name
        # Unbuffered: a buffer would retry on close and leave part of what did not fit.
        with explained(f"cannot write {path}", self.advice_on_full_disk), open(path, "ab", buffering=0) as file:
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
        checkpoints = [
            Checkpoint(int(match[1]), path)
            for path in (self.folder / "checkpoints").glob("step-*")
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / "state.json").is_file()
        ]
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)

    def save_checkpoint(
        self,
        step: int,
        state: Mapping[str, Any],
        write: Callable[[Path], None],
        keep: int,
        spared: Collection[int] = (),
    ) -> Checkpoint:
        """Write checkpoints/step-N atomically, then delete all but the newest ``keep`` and those of ``spared`` steps.

        ``write`` fills a folder with ``model/`` and ``optimizer.safetensors``. Raises BurnishError if the checkpoint
        cannot be written; older checkpoints are unchanged.
        """
        target = self.folder / "checkpoints" / f"step-{step}"
        with explained(f"cannot save {target}", self.advice_on_full_disk):
            # An existing one is complete and has the same bits: an interrupt came right after it was written.
            if not (target / "state.json").is_file():
                shutil.rmtree(target, ignore_errors=True)
                with new_folder(target) as temporary:
                    (temporary / "model").mkdir()
                    write(temporary)
                    write_json(temporary / "state.json", {"step": step, **state})
                    # If the checkpoint survives a power cut, the lines up to its step must too.
                    for name in LINES:
                        sync_file(self.folder / name)
            self._point_model_at(Checkpoint(step, target))
            for old in self.checkpoints()[:-keep]:
                if old.step not in spared:
                    # Renamed first: a half-deleted checkpoint must never look complete.
                    temporary = old.folder.with_name(f".{old.folder.name}.partial")
                    os.rename(old.folder, temporary)
                    shutil.rmtree(temporary, ignore_errors=True)
        return Checkpoint(step, target)

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
        step = checkpoint.step if checkpoint else 0
        with explained(f"cannot write to the run folder {self.folder}", self.advice_on_full_disk):
            for name in LINES:
                path = self.folder / name
                if path.exists():
                    write_parts(path, (line for line, row in _whole_lines(path) if _step(path, row) <= step))
            for leftover in (self.folder / "checkpoints").glob(".*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
            if checkpoint:
                # The run may have been killed after writing the checkpoint and before linking its model.
                self._point_model_at(checkpoint)

    def extend(self, recipe: Job) -> None:
        """Replace the recipe by a longer one, for good once training goes on (``keep_extension``)."""
        self._recipe_before = (self.folder / "recipe.toml").read_text(encoding="utf-8")
        self.put("recipe.toml", recipe.toml())

    def keep_extension(self) -> None:
        self._recipe_before = None

    def undo_extension(self) -> None:
        """Restore the recipe before an extension, unless training has gone on: a second try would extend it again."""
        if self._recipe_before is not None:
            self.put("recipe.toml", self._recipe_before)

    def put(self, name: str, text: str) -> None:
        """Write a file of the folder atomically. Raise BurnishError if that fails."""
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
            before = "evaluation/before.json"
            for name in ("recipe.toml", "environment.json", ".lock", before, *LINES, *EARLY_FILES):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / START, ignore_errors=True)
            for name in ("checkpoints", "evaluation", "."):
                (self.folder / name).rmdir()


def _make_unused(path: Path) -> Path:
    """Make the folder, with a number appended if the name is taken, and return its path."""
    with explained(f"cannot make the run folder {path}"):
        for number in itertools.count(1):
            numbered = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                numbered.mkdir(parents=True)
                return numbered
    raise AssertionError("unreachable")


def _same_files(folder: Path, other: Path) -> bool:
    sizes = ({path.relative_to(root): path.stat().st_size for path in root.rglob("*")} for root in (folder, other))
    return next(sizes) == next(sizes)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl file, without an incomplete last line. Raises InputError if another is not JSON."""
    if path.exists():
        yield from (row for _, row in _whole_lines(path))


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each complete line with its row, one at a time: a long run's samples may not fit into memory."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield line, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON ({error}); delete the line") from error


def _step(path: Path, row: Any) -> float:
    """Return the step of a row, 0 if it has none. Raises InputError if it is no number."""
    step = row.get("step", 0) if isinstance(row, dict) else None
    if not isinstance(step, int | float):
        raise InputError(f"{path}: a line is damaged, it has no object with a step: {str(row)[:60]}; delete the line")
    return step


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metrics row without timings: the part that is equal in two runs of one recipe and seed."""
    return {key: value for key, value in row.items() if not key.startswith(TIMINGS)}
