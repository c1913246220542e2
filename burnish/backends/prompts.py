"""Training and held-out prompts of a recipe's task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.errors import BurnishError, InputError, one_line
from burnish.protocols import Observer, Task
from burnish.recipe.schema import Recipe
from burnish.run.folder import BROKEN_ROWS
from burnish.system.files import explained, write_text
from burnish.tasks.registry import TASKS
from burnish.types import Prompt

if TYPE_CHECKING:
    pass


def task_prompts(
    recipe: Recipe, *, offline: bool = False, observer: Observer | None = None, folder: Path | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts of the recipe's task, its data fetched where that is needed.

    Args:
        folder: the run folder, where rows that cannot be used are listed.
    """
    task = prepared_task(recipe, offline=offline, observer=observer)
    with task_errors(recipe.task.use):
        sides = list(task.train()), list(task.evaluation())
    broken = getattr(task, "broken", ())
    if folder is not None:
        lines = [json.dumps({"place": row.place, "reason": row.reason}, ensure_ascii=False) + "\n" for row in broken]
        with explained(f"cannot write {folder / BROKEN_ROWS}"):
            if lines:
                write_text(folder / BROKEN_ROWS, "".join(lines))
            else:  # one of before is of data that were mended since
                (folder / BROKEN_ROWS).unlink(missing_ok=True)
    train, held_out = checked_prompts(*sides, recipe.task.use)
    return train, held_out[: recipe.evaluation.prompts]


def prepared_task(recipe: Recipe, *, offline: bool = False, observer: Observer | None = None) -> Task:
    """The recipe's task with its data fetched."""
    with task_errors(recipe.task.use):
        task = TASKS.get(recipe.task.use)(**recipe.task.options)
        prepare: Callable[..., None] | None = getattr(task, "prepare", None)
        if prepare is not None:
            prepare(offline=offline, observer=observer)
    return task


@contextmanager
def task_errors(name: str) -> Iterator[None]:
    """Turns what a task of one's own raises into one line."""
    try:
        yield
    except BurnishError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise InputError(f"task '{name}' raised {type(error).__name__}: {reason}") from error


def checked_prompts(train: list[Prompt], held_out: list[Prompt], name: str) -> tuple[list[Prompt], list[Prompt]]:
    """A task's two sides, if they are prompts, neither is empty, and no prompt is on both; else InputError."""
    for side, prompts in (("training", train), ("held-out", held_out)):
        if not prompts:
            raise InputError(f"task '{name}' has no {side} prompts: check its options and its data")
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise InputError(
                    f"task '{name}' gives a {type(prompt).__name__} among its {side} prompts: make it a Prompt"
                )
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise InputError(f"task '{name}' gives two {side} prompts the same id: ids must be unique")
    if both := {prompt.id for prompt in train} & {prompt.id for prompt in held_out}:
        raise InputError(
            f"task '{name}' has prompt '{min(both)}' on both sides: held-out prompts must not be trained on"
        )
    return train, held_out
