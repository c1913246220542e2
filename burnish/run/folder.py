"""A run folder: what a run writes, atomically, and how it is taken up again.

Whatever moment a run is killed at, the folder holds whole checkpoints and whole lines up to some step; resuming cuts the
lines back to the newest checkpoint and goes on from there. All randomness is a function of seed and step, so the steps
that are done again come out with the same bits.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from burnish.errors import BurnishError, InputError
from burnish.system.files import explained, sync_file, sync_folder, sync_tree, write_json, write_text

if TYPE_CHECKING:
    from burnish.recipe.schema import Job

LINES = ("metrics.jsonl", "samples.jsonl", "warnings.jsonl", "held_out.jsonl")
BROKEN_ROWS = "broken_rows.jsonl"
"""The rows of somebody's data that cannot be used, with their places and reasons; there where there are any."""
START = "start"
"""Folder of what training started from, where that was made by the run and not loaded."""
TIMINGS = ("time/", "tokens_per_second", "memory/")
"""Prefixes of the metrics that may differ between two runs of one recipe and seed."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk: ``model/``, ``optimizer.safetensors`` and ``state.json``."""

    step: int
    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """What the learner wrote besides tensors. Raises InputError where it cannot be read."""
        path = self.folder / "state.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: the checkpoint is damaged ({error}); delete {self.folder} to go on from an older one"
            ) from error
        return found


class Run:
    """One run folder, held by one process at a time.

    Args:
        verb: the command that goes on with it, for messages.
    """

    def __init__(self, folder: Path, verb: str = "train") -> None:
        self.folder = folder
        self.verb = verb
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder}: another process is working on this run; wait for it or stop it first"
            ) from error
        except NotImplementedError as error:
            raise BurnishError(
                f"{folder}: this file system knows no locks: choose a run folder on a local disk"
            ) from error

    @classmethod
    def create(
        cls,
        recipe: Job,
        folder: Path | None = None,
        environment: Mapping[str, Any] | None = None,
        *,
        verb: str = "train",
    ) -> Run:
        """Makes a new run folder. Raises InputError where it holds a run already, BurnishError where it cannot be made."""
        place = folder or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
        if folder is None:
            place = _unused(place)
        if (place / "recipe.toml").exists():
            raise InputError(
                f"{place} holds a run already: choose another --run-dir, or resume it with --resume {place}"
            )
        with explained(f"cannot make the run folder {place}"):
            (place / "checkpoints").mkdir(parents=True, exist_ok=True)
            (place / "evaluation").mkdir(exist_ok=True)
            run = cls(place, verb)
            write_json(place / "environment.json", environment or {})
            # The recipe comes last: a folder with a recipe is a run.
            write_text(place / "recipe.toml", recipe.toml())
        return run

    @classmethod
    def open(cls, folder: Path, verb: str = "train") -> Run:
        """Takes up an existing run folder. Raises InputError where there is none."""
        if not (folder / "recipe.toml").is_file():
            raise InputError(f"{folder} is no run folder: it has no recipe.toml")
        with explained(f"cannot write to the run folder {folder}"):
            return cls(folder, verb)

    def close(self) -> None:
        self._lock.release()

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines to one of the .jsonl files; they are with the operating system when this returns."""
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        # Lone surrogates (half an emoji, cut off at the token limit) cannot be written as UTF-8.
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        path = self.folder / name
        # Without a buffer, which would try again on closing and leave the tail of what did not fit.
        with explained(f"cannot write {path}", self.advice_on_full_disk), open(path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                # Half a line would stand in the way of the next one.
                with suppress(OSError):
                    file.truncate(end)
                raise

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a .jsonl file; a last line that was cut off by a kill is left out."""
        return list(read_lines(self.folder / name))

    def checkpoints(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first."""
        found = []
        for path in (self.folder / "checkpoints").glob("step-*"):
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / "state.json").is_file():
                found.append(Checkpoint(int(match[1]), path))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def save_checkpoint(
        self, step: int, state: Mapping[str, Any], write: Callable[[Path], None], keep: int, spare: int | None = None
    ) -> Checkpoint:
        """Writes checkpoints/step-N in one piece, then lets go of all but the newest ``keep``.

        Args:
            write: fills a folder with ``model/`` and ``optimizer.safetensors``.
            spare: step of one that stays whatever its age.
        Raises:
            BurnishError: it could not be written, for instance on a full disk; older checkpoints are as they were.
        """
        target = self.folder / "checkpoints" / f"step-{step}"
        temporary = target.with_name(f".{target.name}.partial")
        with explained(f"cannot save {target}", self.advice_on_full_disk):
            # Where it is there it is whole, and has the same bits: an interrupt came right after it was written.
            if not (target / "state.json").is_file():
                try:
                    for leftover in (temporary, target):
                        shutil.rmtree(leftover, ignore_errors=True)
                    (temporary / "model").mkdir(parents=True)
                    write(temporary)
                    write_json(temporary / "state.json", {"step": step, **state})
                    # The lines up to this step must outlive a power cut if the checkpoint does.
                    for name in LINES:
                        sync_file(self.folder / name)
                    sync_tree(temporary)
                    os.rename(temporary, target)
                    sync_folder(target.parent)
                except BaseException:
                    shutil.rmtree(temporary, ignore_errors=True)
                    raise
            self._point_model_at(Checkpoint(step, target))
            for old in self.checkpoints()[:-keep]:
                if old.step == spare:
                    continue
                # Renamed first: half of a checkpoint must never look like a whole one.
                temporary = old.folder.with_name(f".{old.folder.name}.partial")
                os.rename(old.folder, temporary)
                shutil.rmtree(temporary, ignore_errors=True)
        return Checkpoint(step, target)

    def _point_model_at(self, checkpoint: Checkpoint) -> None:
        link = self.folder / "model"
        fresh = self.folder / ".model.partial"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(Path("checkpoints") / checkpoint.folder.name / "model")
        os.replace(fresh, link)

    def choose_model(self, checkpoint: Checkpoint) -> None:
        """Makes a checkpoint's model the run's. Raises BurnishError where that cannot be written."""
        with explained(f"cannot write to the run folder {self.folder}", self.advice_on_full_disk):
            self._point_model_at(checkpoint)

    def cut_back(self, checkpoint: Checkpoint | None) -> None:
        """Drops lines of later steps and leftovers of a kill, so that the folder is as it was after the checkpoint (None:
        before the first step)."""
        step = checkpoint.step if checkpoint else 0
        with explained(f"cannot write to the run folder {self.folder}", self.advice_on_full_disk):
            for name in LINES:
                path = self.folder / name
                if path.exists():
                    kept = [row for row in read_lines(path) if row.get("step", 0) <= step]
                    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
            for leftover in (self.folder / "checkpoints").glob(".*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
            if checkpoint:
                # A kill may have come between the checkpoint and the link to its model.
                self._point_model_at(checkpoint)

    def put(self, name: str, text: str) -> None:
        """Writes a file of the folder in one piece. Raises BurnishError where that fails."""
        with explained(f"cannot write {self.folder / name}", self.advice_on_full_disk):
            write_text(self.folder / name, text)

    @property
    def resume_command(self) -> str:
        """The command that takes the run up again."""
        return f"burnish {self.verb} --resume {self.folder}"

    @property
    def advice_on_full_disk(self) -> str:
        return f"make room, then resume with: {self.resume_command}"

    def discard(self) -> None:
        """Takes away what ``create`` made, of a run that never began; other files in the folder stay."""
        self.close()
        with suppress(OSError):
            for name in ("recipe.toml", "environment.json", ".lock", BROKEN_ROWS):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / START, ignore_errors=True)
            for name in ("checkpoints", "evaluation", "."):
                (self.folder / name).rmdir()


def _unused(place: Path) -> Path:
    """The folder, or one with a number behind it, made by this process and no other."""
    with explained(f"cannot make the run folder {place}"):
        for number in itertools.count(1):
            numbered = place if number == 1 else place.with_name(f"{place.name}-{number}")
            with suppress(FileExistsError):
                numbered.mkdir(parents=True)
                return numbered
    raise AssertionError("unreachable")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl file; stops without complaint at a last line that is not whole.

    Raises:
        InputError: a line that is not the last one cannot be read.
    """
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); delete the line") from error


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A metrics row without its timings: what must be equal between two runs of one recipe and seed."""
    return {key: value for key, value in row.items() if not key.startswith(TIMINGS)}
