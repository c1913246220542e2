"""Rows that a Python call gives to a run, kept in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from burnish.data.objects import HELD_OUT_ROWS, ROWS, rows_as_files
from burnish.recipe.schema import Job, Recipe
from burnish.run.folder import Run

J = TypeVar("J", bound=Job)


def rows_overrides(section: str, rows: object) -> list[str]:
    """Return the overrides that let a recipe read the rows of a call, before their file is written."""
    return [] if rows is None else [f"{section}.use=data", f"{section}.path={ROWS}"]


def create_with_rows(recipe: Job, rows: Any, run: dict[str, Any]) -> Run:
    """Create a run folder with the rows and a recipe that names them; ``run`` has the arguments of ``Run.create``.

    Raises InputError as ``rows_as_files`` and ``Run.create``.
    """
    files = rows_as_files(rows)
    folder = run["folder"] or Run.unused_folder(recipe)
    paths = {"path": ROWS, "held_out": HELD_OUT_ROWS}
    options = {key: str((folder / name).absolute()) for key, name in paths.items() if name in files}
    return Run.create(_with_options(recipe, options), **{**run, "folder": folder, "files": files})


def with_own_rows(folder: Path, recipe: J) -> J:
    """Return the recipe with the rows of the run folder, if it has some; it may have been moved."""
    files = {"path": folder / ROWS, "held_out": folder / HELD_OUT_ROWS}
    options = {key: str(path.absolute()) for key, path in files.items() if path.is_file()}
    return _with_options(recipe, options) if "path" in options else recipe


def _with_options(recipe: J, options: dict[str, str]) -> J:
    key = "task" if isinstance(recipe, Recipe) else "data"
    section = getattr(recipe, key)
    return recipe.model_copy(update={key: type(section).model_validate({**section.model_dump(), **options})})
