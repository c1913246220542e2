"""Proof that a run folder is what its run wrote: before it is resumed, and for ``burnish check RUN``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.protocols import Observer
from burnish.run.folder import BEST_MODEL, LINES, LOCK, Checkpoint, Run, find_checkpoints, read_lines
from burnish.run.history import HISTORY, RecipeHistory, read_history
from burnish.run.inputs import changed_inputs
from burnish.run.manifest import MANIFEST, files_damage, read_manifest, run_damage
from burnish.system.confined import escapes
from burnish.system.file_records import tensor_shapes
from burnish.system.files import regular_bytes

WITHOUT = "saved before checkpoints had a manifest, so its files cannot be proved"


@dataclass(frozen=True, slots=True)
class RunPart:
    """A part of a run folder: what is wrong with it, or what it holds."""

    name: str
    holds: str
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the part as JSON has it."""
        return {"part": self.name, "whole": not self.problems, "holds": self.holds, "problems": self.problems}

    def lines(self) -> list[str]:
        """Return the part as the terminal shows it."""
        texts = [f"wrong: {text}" for text in self.problems] or [self.holds]
        return [f"{self.name if not index else '':<24}{text}" for index, text in enumerate(texts)]


def prove_resumable(run: Run, observer: Observer, *, from_step: int | None = None) -> None:
    """Hold the checkpoint that a run resumes from against its manifest, and the run's recipe against its beginning.

    Args:
        from_step: the step to go back to; newer checkpoints and lines are deleted. 0 begins again.

    Raises:
        InputError: something differs; the message names it, and the newest checkpoint that is whole.
    """
    folder = run.folder
    try:
        history = read_history(folder)
    except InputError as error:
        raise InputError(f"{error}: restore it, or start a new run") from error
    if history and (text := history.edited(folder)):
        extend = ", or add steps with --extend" if ": steps was" in text else ""
        raise InputError(f"{text}: restore it{extend}, or start a new run")
    if from_step is not None:
        _go_back(run, from_step, history)
    for path in _incomplete(folder):
        observer.message(f"{path} is not a whole checkpoint (no state.json) and is left out", level="warning")
    newest = next(reversed(run.checkpoints()), None)
    if newest and (problems := list(checkpoint_damage(folder, newest, history))):
        raise InputError(_offer(run, newest, problems, history))
    if newest and not os.path.lexists(newest.folder / MANIFEST):
        observer.message(f"{newest.folder} was {WITHOUT}", level="warning")
    if history is None:
        recipe = (folder / "recipe.toml").read_text(encoding="utf-8")
        run.put(HISTORY, RecipeHistory.of(recipe, newest.step if newest else 0).text())
    if newest:
        run.proved.add(newest.folder)


def _go_back(run: Run, step: int, history: RecipeHistory | None) -> None:
    steps = {one.step: one for one in run.checkpoints()}
    if step and step not in steps:
        known = ", ".join(map(str, [0, *steps]))
        raise InputError(f"--from-step {step}: {run.folder} has no such checkpoint; it has {known}")
    if step and (problems := list(checkpoint_damage(run.folder, steps[step], history))):
        raise InputError(_offer(run, steps[step], problems, history))
    run.go_back(steps.get(step))


def _offer(run: Run, broken: Checkpoint, problems: list[str], history: RecipeHistory | None) -> str:
    """Return the error for a checkpoint that cannot be taken: what is wrong, and the command that goes on."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    older = [one for one in reversed(run.checkpoints()) if one.step < broken.step]
    whole = next((one.step for one in older if not any(checkpoint_damage(run.folder, one, history))), 0)
    command = f"burnish {run.verb} --resume {shlex.quote(str(run.folder))} --from-step {whole}"
    newest = f"resume from step {whole}, the newest whole checkpoint, which deletes what is newer"
    begin = "start a new run, or begin this one again, which deletes what it trained"
    return f"{problems[0]}{more}\nrestore it, or {newest if whole else begin}: {command}"


def checkpoint_damage(run: Path, checkpoint: Checkpoint, history: RecipeHistory | None) -> Iterator[str]:
    """Yield what is wrong with a checkpoint, and with what it needs of the run folder."""
    try:
        manifest = read_manifest(checkpoint.folder)
    except InputError as error:
        yield str(error)
        return
    if manifest is None:
        if history and checkpoint.step > history.unproved_until:
            yield f"{checkpoint.folder / MANIFEST} is missing"
        else:
            yield from _structure(run, checkpoint)
        return
    yield from files_damage(checkpoint.folder, checkpoint.step, manifest)
    if history and (text := history.foreign(manifest["recipe"])):
        yield f"{checkpoint.folder} belongs to a run of another recipe: {text}"
    yield from run_damage(run, manifest)


def _structure(run: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what is wrong with a checkpoint without a manifest, as far as it can be told."""
    try:
        if checkpoint.state.get("step") != checkpoint.step:
            yield f"{checkpoint.folder}/state.json belongs to another step"
        rows = [row for row in read_lines(run / "metrics.jsonl") if isinstance(row, dict)]
    except (InputError, OSError) as error:
        yield str(error)
        return
    optimizer = checkpoint.folder / "optimizer.safetensors"
    for path in sorted({optimizer, *checkpoint.folder.rglob("*.safetensors")}):
        try:
            shapes = tensor_shapes(path)
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"
            continue
        if shapes is None:
            yield f"{path} is damaged: it has no header, or not all of its tensors"
        elif path == optimizer and not shapes and any(row.get("grad_norm") for row in rows):
            yield f"{path} has no tensors, although the optimizer has made steps"
    if text := _lost_steps(run, rows, checkpoint.step):
        yield text


def _lost_steps(run: Path, rows: Iterable[Mapping[str, Any]], step: int) -> str:
    """Return which steps metrics.jsonl lacks up to this one, "" if it has all."""
    missing = sorted(set(range(1, step + 1)) - {row.get("step") for row in rows})
    path = run / "metrics.jsonl"
    return f"{path} has lost {len(missing)} of {step} steps, such as {missing[0]}" if missing else ""


def _incomplete(run: Path) -> list[Path]:
    return [path for path in sorted((run / "checkpoints").glob("step-*")) if not (path / "state.json").is_file()]


def examine(run: Path) -> list[RunPart]:
    """Return every part of a run folder with what is wrong with it. Raises InputError if it is no run folder."""
    if not (run / "recipe.toml").is_file():
        raise InputError(f"{run} is not a run folder: it has no recipe.toml")
    lock = run / LOCK
    odd = [f"{lock} is not a file"] if os.path.lexists(lock) and not lock.is_file() else []
    parts = [RunPart("links", "none leads out of the folder", [*escapes(run), *odd])]
    if parts[0].problems:
        return parts
    try:
        history = read_history(run)
        texts = [history.edited(run)] if history else []
        holds = "as its run wrote it" if history else f"no {HISTORY}: the run began before there was one"
        parts.append(RunPart("recipe.toml", holds, [text for text in texts if text]))
    except InputError as error:
        history = None
        parts.append(RunPart(HISTORY, "", [str(error)]))
    parts.append(RunPart("inputs", "as they were when the run began", changed_inputs(run)))
    checkpoints = find_checkpoints(run)
    parts.append(_lines_part(run, checkpoints[-1].step if checkpoints else 0))
    for checkpoint in checkpoints:
        problems = list(checkpoint_damage(run, checkpoint, history))
        proved = os.path.lexists(checkpoint.folder / MANIFEST)
        parts.append(
            RunPart(f"checkpoints/step-{checkpoint.step}", _holds(checkpoint) if proved else WITHOUT, problems)
        )
    for path in _incomplete(run):
        parts.append(RunPart(f"checkpoints/{path.name}", "", [f"{path} has no state.json, so it is not a checkpoint"]))
    parts += [_link_part(run, name, checkpoints) for name in ("model", BEST_MODEL) if os.path.lexists(run / name)]
    return parts


def _holds(checkpoint: Checkpoint) -> str:
    files = [path for path in checkpoint.folder.rglob("*") if path.is_file()]
    return f"whole: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"


def _lines_part(run: Path, step: int) -> RunPart:
    problems: list[str] = []
    for name in (*LINES, "evaluation.json"):
        try:
            if name == "evaluation.json":
                json.loads(regular_bytes(run / name)) if os.path.lexists(run / name) else None
            elif name == "metrics.jsonl":
                problems += filter(None, [_lost_steps(run, read_lines(run / name), step)])
            else:
                for _ in read_lines(run / name):
                    pass
        except InputError as error:
            problems.append(str(error))
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            problems.append(f"{run / name} cannot be read: {error}")
    return RunPart("metrics and samples", f"every step up to {step}" if step else "no checkpoint yet", problems)


def _link_part(run: Path, name: str, checkpoints: list[Checkpoint]) -> RunPart:
    link = run / name
    steps = {f"checkpoints/step-{one.step}/model" for one in checkpoints}
    target = os.readlink(link) if link.is_symlink() else ""
    if target in steps:
        return RunPart(name, f"leads to {target}")
    reason = f"leads to {target}, which is not a checkpoint" if target else "is not a link to a checkpoint"
    return RunPart(name, "", [f"{link} {reason}"])
