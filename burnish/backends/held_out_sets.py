"""Prompts of the further held-out sets of a recipe, ``[[evaluation.sets]]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from burnish.backends.preflight import check_backend_package, check_prompts
from burnish.backends.prompts import list_broken_rows, task_errors, task_prompts
from burnish.errors import InputError
from burnish.named_code import is_withheld, module_file
from burnish.protocols import Observer
from burnish.recipe.evaluation import HeldOutSet
from burnish.recipe.schema import Recipe
from burnish.recipe.sections import OpenSection
from burnish.tasks.registry import TASKS
from burnish.types import Prompt

if TYPE_CHECKING:
    from burnish.policies.causal_lm import CausalModel

Sets = Mapping[str, Sequence[Prompt]]
"""Name of a set -> its prompts."""


def held_out_sets(
    recipe: Recipe,
    train: Sequence[Prompt],
    *,
    offline: bool = False,
    observer: Observer | None = None,
    folder: Path | None = None,
) -> dict[str, list[Prompt]]:
    """Return the prompts of each set, and list the unusable rows in the run folder.

    Warns of a set's prompts that are among those to ``train`` on. Raises InputError if a set cannot be used.
    """
    asked = {_question(prompt) for prompt in train}
    sets = {}
    for index, section in enumerate(recipe.evaluation.sets):
        with _set_errors(index, section):
            named = _named(section, observer)
            prompts = _read(recipe, section, offline, named, folder)
            if len(prompts) < 2:
                raise InputError(f"{len(prompts)} prompts are too few to compare: give it at least two")
            check_prompts(recipe, [], prompts, named)
        both = [prompt for prompt in prompts if _question(prompt) in asked]
        if both and named is not None:
            named.message(
                f"{len(both)} of {len(prompts)} prompts are also trained on, such as "
                f"{both[0].position or both[0].id}: its results do not show what the model has not seen; remove these "
                "prompts from the set or from the training data",
                level="warning",
            )
        sets[section.name] = prompts
    return sets


def check_recipe_data(recipe: Recipe, *, offline: bool = False, observer: Observer | None = None) -> None:
    """Read the user's own data, of the task ``data`` or an own task; of another task, only check the options.

    Raises InputError if a run could not use them, or the backend's package is not installed.
    """
    check_backend_package(recipe)
    recipe = _without_withheld(recipe, observer)
    if is_withheld(recipe.task.use):
        return
    if recipe.task.use == "data" or ":" in recipe.task.use or recipe.evaluation.sets:
        train, held_out = task_prompts(recipe, offline=offline, observer=observer)
        check_prompts(recipe, train, held_out, observer)
        held_out_sets(recipe, train, offline=offline, observer=observer)
    else:
        with task_errors(recipe.task.use):
            TASKS.get(recipe.task.use)(**recipe.task.options)


def _without_withheld(recipe: Recipe, observer: Observer | None) -> Recipe:
    """Return the recipe without the rewards and sets whose code may not run now; each is reported with its file.

    Raises InputError if a module is not there.
    """
    lists: list[tuple[str, Sequence[OpenSection]]] = [
        ("reward", recipe.reward),
        ("evaluation.metrics", recipe.evaluation.metrics),
        ("evaluation.sets", recipe.evaluation.sets),
    ]
    named = [("task.use", recipe.task.use), ("policy.module", recipe.policy.module or "")]
    named += [(f"{key}.{index}.use", one.use) for key, sections in lists for index, one in enumerate(sections)]
    for key, name in named:
        if not is_withheld(name):
            continue
        where = module_file(module := name.partition(":")[0])
        if where is None:
            raise InputError(f"{key}: '{name}': cannot import '{module}': there is no such module beside the recipe")
        if observer is not None:
            observer.message(f"{key}: '{name}' is code in {where}: a dry run does not run it")
    kept = {key: [one for one in sections if not is_withheld(one.use)] for key, sections in lists}
    evaluation = recipe.evaluation.model_copy(
        update={"metrics": kept["evaluation.metrics"], "sets": kept["evaluation.sets"]}
    )
    return recipe.model_copy(update={"reward": kept["reward"], "evaluation": evaluation})


def fitting_sets(recipe: Recipe, model: CausalModel, sets: Sets, observer: Observer | None) -> dict[str, list[Prompt]]:
    """Return the sets with prompts that fit the model, as ``check_lengths`` does. Raises InputError as it does."""
    from burnish.backends.prompt_lengths import check_lengths  # which loads torch

    fitting = {}
    for index, section in enumerate(recipe.evaluation.sets):
        with _set_errors(index, section):
            prompts = sets[section.name]
            _, fitting[section.name], _ = check_lengths(recipe, model, [], prompts, _named(section, observer))
    return fitting


def _read(
    recipe: Recipe, section: HeldOutSet, offline: bool, observer: Observer | None, folder: Path | None
) -> list[Prompt]:
    with task_errors(section.use):
        task = TASKS.get(section.use)(**section.task_options(recipe.task))
        # Rows of a file are held out as a whole, and of other tasks what is never trained on.
        whole = getattr(task, "all_prompts", None) if section.use == "data" else None
        if whole is not None:
            prompts = list(whole(offline=offline, observer=observer))
        else:
            if prepare := getattr(task, "prepare", None):
                prepare(offline=offline, observer=observer)
            prompts = list(task.evaluation())
    if folder is not None:
        list_broken_rows(folder, getattr(task, "broken", ()), more=True)
    return prompts[: section.prompts]


class _NamedMessages:
    """An observer that passes everything on, and names a set in each message."""

    def __init__(self, name: str, observer: Observer) -> None:
        self._name, self._observer = name, observer

    def message(self, text: str, *, level: str = "info") -> None:
        self._observer.message(f"set '{self._name}': {text}", level=level)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)


def _named(section: HeldOutSet, observer: Observer | None) -> Observer | None:
    return None if observer is None else cast("Observer", _NamedMessages(section.name, observer))


def _question(prompt: Prompt) -> tuple[str, ...]:
    """Return what a prompt asks, without regard to case, white space and system messages."""
    texts = [message.content for message in prompt.messages if message.role != "system"] or [prompt.text]
    return tuple(" ".join(text.split()).casefold() for text in texts)


@contextmanager
def _set_errors(index: int, section: HeldOutSet) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"evaluation.sets.{index} ('{section.name}'): {error}") from error
