"""Training and held-out prompts of a recipe's task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError, InputError, one_line
from burnish.protocols import Observer, Task
from burnish.recipe.schema import Recipe
from burnish.run.folder import BROKEN_ROWS
from burnish.system.files import explained, write_text
from burnish.tasks.registry import TASKS
from burnish.types import Prompt


def task_prompts(
    recipe: Recipe, *, offline: bool = False, observer: Observer | None = None, folder: Path | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Return the training and held-out prompts of the recipe's task, and list the unusable rows in the run folder."""
    task = prepared_task(recipe, offline=offline, observer=observer)
    with task_errors(recipe.task.use):
        train, held_out = list(task.train()), list(task.evaluation())
    if folder is not None:
        list_broken_rows(folder, getattr(task, "broken", ()))
    check_split(train, held_out, recipe.task.use)
    return train, held_out[: recipe.evaluation.prompts]


def prepared_task(recipe: Recipe, *, offline: bool = False, observer: Observer | None = None) -> Task:
    """Return the recipe's task with its data fetched."""
    with task_errors(recipe.task.use):
        task = TASKS.get(recipe.task.use)(**recipe.task.options)
        prepare: Callable[..., None] | None = getattr(task, "prepare", None)
        if prepare is not None:
            prepare(offline=offline, observer=observer)
    return task


@contextmanager
def task_errors(name: str) -> Iterator[None]:
    """Turn an exception of a user's task into one line."""
    try:
        yield
    except BurnishError:
        raise
    except Exception as error:
        raise InputError(f"task '{name}' raised {type(error).__name__}: {one_line(error)}") from error


def check_split(train: list[Prompt], held_out: list[Prompt], name: str) -> None:
    """Raise InputError unless both sides hold prompts with unique ids, and no prompt is on both."""
    for side, prompts in (("training", train), ("held-out", held_out)):
        if not prompts:
            raise InputError(f"task '{name}' has no {side} prompts: check its options and its data")
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise InputError(
                    f"task '{name}' returns a {type(prompt).__name__} among its {side} prompts: make it a Prompt"
                )
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise InputError(f"task '{name}' gives two {side} prompts the same id: ids must be unique")
    if both := {prompt.id for prompt in train} & {prompt.id for prompt in held_out}:
        raise InputError(
            f"task '{name}' has prompt '{min(both)}' on both sides: held-out prompts must not be trained on"
        )


def list_broken_rows(folder: Path, rows: Sequence[Any], *, more: bool = False) -> None:
    """Write the run's list of rows that cannot be used, or add ``more`` to it."""
    path = folder / BROKEN_ROWS
    lines = [json.dumps({"place": row.position, "reason": row.reason}, ensure_ascii=False) + "\n" for row in rows]
    with explained(f"cannot write {path}"):
        if lines:
            before = path.read_text(encoding="utf-8") if more and path.exists() else ""
            write_text(path, before + "".join(lines))
        elif not more:  # an existing list is of data that have been corrected since
            path.unlink(missing_ok=True)
