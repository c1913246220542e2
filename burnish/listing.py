"""Names that a recipe can use, with a one-line summary of each: ``burnish list``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from burnish.algorithms.presets import PRESETS
from burnish.catalogue import entries
from burnish.errors import InputError
from burnish.recipe.reading import KINDS, builtin_recipes
from burnish.registry import nearest
from burnish.rewards.registry import REWARDS
from burnish.tasks.registry import TASKS


def listing(what: str) -> list[dict[str, str]]:
    """Return the names of one kind, each with a one-line summary. Raises InputError if there is no such kind."""
    kinds: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "algorithms": lambda: [(name, f"{preset.when} ({preset.paper})") for name, preset in PRESETS.items()],
        "rewards": lambda: [(name, REWARDS.get(name).summary) for name in REWARDS.names()],
        "tasks": lambda: [(name, (inspect.getdoc(TASKS.get(name)) or "").partition("\n")[0]) for name in TASKS.names()],
        "models": lambda: _catalogue("model"),
        "data": lambda: _catalogue("data"),
        "recipes": lambda: [
            (name, _first_comment(path)) for kind in (None, *KINDS) for name, path in builtin_recipes(kind).items()
        ],
    }
    if what not in kinds:
        raise InputError(f"cannot list '{what}'{nearest(what, kinds)}; choose one of: {', '.join(kinds)}")
    return [{"name": name, "summary": text} for name, text in kinds[what]()]


def _catalogue(kind: entries.Kind) -> list[tuple[str, str]]:
    rows = [entries.lookup(name) for name in entries.names(kind)]
    return [(entry.name, f"{entry.description}; from {entry.requirement}, {entry.licence}") for entry in rows]


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("#") else ""
