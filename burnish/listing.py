"""Names that a recipe can use, with a one-line summary of each: ``burnish list``.

Each kind imports what it lists, so that no other kind is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from burnish.errors import InputError
from burnish.registry import nearest


def listing(what: str) -> list[dict[str, str]]:
    """Return the names of one kind, each with a one-line summary. Raises InputError if there is no such kind."""
    kinds: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "algorithms": _algorithms,
        "rewards": _rewards,
        "tasks": _tasks,
        "models": lambda: _catalogue("model"),
        "data": lambda: _catalogue("data"),
        "recipes": _recipes,
    }
    if what not in kinds:
        raise InputError(f"cannot list '{what}'{nearest(what, kinds)}; choose one of: {', '.join(kinds)}")
    return [{"name": name, "summary": text} for name, text in kinds[what]()]


def _algorithms() -> list[tuple[str, str]]:
    from burnish.algorithms.presets import PRESETS

    return [(name, f"{preset.when} ({preset.paper})") for name, preset in PRESETS.items()]


def _rewards() -> list[tuple[str, str]]:
    from burnish.rewards.registry import REWARDS

    return [(name, REWARDS.get(name).summary) for name in REWARDS.names()]


def _tasks() -> list[tuple[str, str]]:
    from burnish.tasks.registry import TASKS

    return [(name, (inspect.getdoc(TASKS.get(name)) or "").partition("\n")[0]) for name in TASKS.names()]


def _catalogue(kind: Literal["model", "data"]) -> list[tuple[str, str]]:
    from burnish.catalogue import entries

    rows = [entries.lookup(name) for name in entries.names(kind)]
    return [(entry.name, f"{entry.description}; from {entry.requirement}, {entry.licence}") for entry in rows]


def _recipes() -> list[tuple[str, str]]:
    from burnish.recipe.reading import KINDS, builtin_recipes

    return [(name, _first_comment(path)) for kind in (None, *KINDS) for name, path in builtin_recipes(kind).items()]


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("#") else ""
