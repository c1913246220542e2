"""The files that a run's recipe names, found again after the run was moved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from burnish.errors import InputError
from burnish.recipe.reading import read_override
from burnish.recipe.schema import Recipe, load_recipe
from burnish.recipe.sections import OpenSection
from burnish.run.folder import CHAT_TEMPLATE, INPUTS, START
from burnish.run.inputs import fingerprint
from burnish.run.launch import FILE_OPTIONS
from burnish.run.own_rows import with_own_rows


def run_recipe(folder: Path, overrides: Sequence[str]) -> Recipe:
    """Return a run's recipe with its own rows, model and chat template, and with files that moved along with it.

    A file that is missing is looked for beside the run and above it, under the end of its path, and has to have the
    content that the run recorded. Raises InputError if a file is missing that no override replaces.
    """
    recipe, chosen = load_recipe(folder / "recipe.toml", overrides), {read_override(one)[0] for one in overrides}
    if (own := with_own_rows(folder, recipe)) is not recipe:
        recipe = load_recipe(own.model_dump(mode="json", exclude_none=True), overrides)
    moved: list[str] = []
    copies = {"policy.model": folder / START, "task.template": folder / CHAT_TEMPLATE}
    for key, value in _paths(recipe):
        path: Path | None = copies.get(key)
        if key in chosen or ((path is None or not path.exists()) and _exists(value)):
            continue
        if path is None or not path.exists():
            path = _moved(folder, Path(value))
        if path is None:
            raise InputError(
                f"{folder}: its {key} = '{value}' is missing, and there is no such file with the recorded content beside "
                f"the run: name it with --set {key}=PATH"
            )
        moved.append(f"{key}={json.dumps(str(path.absolute()), ensure_ascii=False)}")
    return load_recipe(recipe.model_dump(mode="json", exclude_none=True), moved) if moved else recipe


def _paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the absolute paths of a recipe, under their keys."""
    tables: list[tuple[str, OpenSection]] = [("task", recipe.task)]
    for key, sections in (
        ("reward", recipe.reward),
        ("evaluation.metrics", recipe.evaluation.metrics),
        ("evaluation.sets", recipe.evaluation.sets),
    ):
        tables += [(f"{key}.{index}", section) for index, section in enumerate(sections)]
    values = {"policy.model": recipe.policy.model, "task.template": recipe.task.template_file}
    for key, section in tables:
        for option in (FILE_OPTIONS.get(section.use, ""), "held_out", "dataset"):
            values[f"{key}.{option}"] = section.options.get(option)
    for key, value in values.items():
        if isinstance(value, str) and Path(value).is_absolute():
            yield key, value


def _exists(value: str) -> bool:
    return Path(value).exists() or bool(glob(value))


def _moved(folder: Path, path: Path) -> Path | None:
    """Return the file of the recorded content whose path ends like this one, beside the run or above it."""
    try:
        inputs = json.loads((folder / INPUTS).read_text(encoding="utf-8"))["inputs"]
        recorded = {name: one["sha256"] for files in inputs.values() for name, one in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    for parent in folder.absolute().parents if str(path) in recorded else ():
        for start in range(1, len(path.parts)):
            candidate = parent.joinpath(*path.parts[start:])
            if candidate.is_file() and fingerprint(candidate)["sha256"] == recorded[str(path)]:
                return candidate
    return None
