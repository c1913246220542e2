"""The contents of a run folder, complete or not, as the report reads them.

A run may have been killed at any moment: missing and damaged parts are left out and listed in ``RunData.problems``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.reports.wording import finite

FILES = ("recipe.toml", "metrics.jsonl", "samples.jsonl", "evaluation.json", "warnings.jsonl", "environment.json")
# The samples of a long run fill gigabytes, but the report shows only the last step.
_TAIL_BYTES = 16_000_000


@dataclass
class RunData:
    """The contents of a run folder."""

    name: str
    recipe_text: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Recipe key -> name of a file or another source -> its fingerprint."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Metrics, one row per step, in order; held-out measurements are added as ``held_out/<metric>``."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Training samples of the last step that wrote any."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    before: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Counts of a supervised run's rows."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """How well a reward model's scores predict preferences."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Texts of a supervised run's held-out examples, which ``before`` and ``after`` measure."""
    problems: list[str] = field(default_factory=list)
    """Descriptions of missing or damaged files."""

    @property
    def kind(self) -> str:
        """The kind of a supervised recipe: "sft", "prefer" or "reward-model"; "" for reinforcement learning."""
        return str(self.recipe.get("kind") or "")

    @property
    def total_steps(self) -> int | None:
        """The recipe's number of steps."""
        steps = finite(self.recipe.get("steps"))
        return None if steps is None else int(steps)

    @property
    def steps_done(self) -> int:
        """The last step that wrote metrics."""
        return int(self.rows[-1]["step"]) if self.rows else 0


def read_run(folder: Path) -> RunData:
    """Read a run folder. Raises InputError if it does not exist or holds none of a run's files."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a run folder, such as one in runs/")
    if not any((folder / name).is_file() for name in FILES):
        raise InputError(f"{folder} is not a run folder: it has no recipe.toml and no metrics.jsonl")
    run = RunData(folder.resolve().name)
    if (data := _bytes(folder / "recipe.toml", run)) is not None:
        # Invalid UTF-8 is shown as replacement characters, and a recipe that does not parse is shown as text.
        run.recipe_text = data.decode("utf-8", "replace")
        try:
            run.recipe = tomllib.loads(run.recipe_text)
        except tomllib.TOMLDecodeError as error:
            run.problems.append(f"recipe.toml is not valid TOML ({error})")
    if isinstance(name := run.recipe.get("name"), str):
        run.name = name
    run.environment = _mapping(folder / "environment.json", run)
    inputs = _mapping(folder / "inputs.json", run, optional=True).get("inputs")
    run.inputs = inputs if isinstance(inputs, dict) else {}
    run.rows = _steps(_lines(folder / "metrics.jsonl", run))
    by_step = {row.get("step"): row for row in run.rows}
    for measured in _lines(folder / "held_out.jsonl", run, optional=True):
        if (row := by_step.get(measured.get("step"))) is not None:
            row.update({f"held_out/{name}": value for name, value in measured.items() if name != "step"})
    if run.kind:
        run.data = _mapping(folder / "data.json", run)
        run.calibration = _mapping(folder / "calibration.json", run, optional=True)
        run.examples = list(_lines(folder / "held_out_examples.jsonl", run, optional=True))
    else:
        run.samples = _last_step(folder / "samples.jsonl", run)
    run.warnings = list(_lines(folder / "warnings.jsonl", run, optional=True))
    going = run.steps_done < (run.total_steps or 0)  # a run under way has no evaluation yet
    run.evaluation = _mapping(folder / "evaluation.json", run, optional=going)
    run.before = _texts(folder / "evaluation" / "before.json", run)
    run.after = _texts(folder / "evaluation" / "after.json", run, optional=going)
    return run


def _bytes(path: Path, run: RunData, *, optional: bool = False, tail: int | None = None) -> bytes | None:
    name = path.name if path.parent.name != "evaluation" else f"evaluation/{path.name}"
    try:
        with open(path, "rb") as file:
            if tail is not None and (size := path.stat().st_size) > tail:
                file.seek(size - tail)
                file.readline()
            return file.read()
    except FileNotFoundError:
        if not optional:
            run.problems.append(f"{name} is missing")
    except OSError as error:
        run.problems.append(f"{name} cannot be read ({error.strerror})")
    return None


def _mapping(path: Path, run: RunData, *, optional: bool = False) -> Mapping[str, Any]:
    value = None
    try:
        if (data := _bytes(path, run, optional=optional)) is not None:
            value = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        run.problems.append(f"{path.name} is damaged")
    return value if isinstance(value, dict) else {}


def _lines(path: Path, run: RunData, *, optional: bool = False) -> Iterator[dict[str, Any]]:
    return _objects((_bytes(path, run, optional=optional) or b"").split(b"\n"), path.name, run)


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file's lines, without damaged ones; none of a file that cannot be read."""
    return list(_lines(path, RunData(path.parent.name), optional=True))


def _objects(lines: Iterable[bytes], name: str, run: RunData) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of lines; count damaged ones among those that were read."""
    damaged = 0
    try:
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                damaged += 1
                continue
            if isinstance(value, dict):
                yield value
    finally:
        if damaged:
            run.problems.append(f"{name}: {damaged} damaged line{'s' if damaged > 1 else ''} left out")


def _steps(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    # A step that was repeated after a resume has several rows, and the last one counts.
    rows = {int(step): row for row in lines if (step := finite(row.get("step"))) is not None}
    return [rows[step] for step in sorted(rows)]


def _last_step(path: Path, run: RunData) -> list[dict[str, Any]]:
    """Return the rows of the last step, read from the end: a report at each checkpoint must not read all of them."""
    lines = (_bytes(path, run, tail=_TAIL_BYTES) or b"").split(b"\n")
    last: float | None = None
    kept: list[dict[str, Any]] = []
    for row in _objects(reversed(lines), path.name, run):
        if (step := finite(row.get("step"))) is None:
            continue
        if last is None or step > last:
            last, kept = step, []
        if step < last:
            break
        kept.append(row)
    return kept[::-1]


def _texts(path: Path, run: RunData, *, optional: bool = False) -> list[dict[str, Any]]:
    rows = _mapping(path, run, optional=optional).get("examples" if run.kind else "samples")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
