"""The recipes that a run has had, in ``recipes.json``: as it began, and after each change that a resume made."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.system.files import regular_bytes

HISTORY = "recipes.json"
MAY_CHANGE = ("steps", "backend")
"""Keys that ``--extend`` and ``--set backend`` change; no result so far depends on them."""


@dataclass(frozen=True, slots=True)
class RecipeHistory:
    """Content of ``recipes.json``.

    Attributes:
        recipes: the content of each recipe that the run has had, the first one first.
        unproved_until: the newest step whose checkpoint may lack a manifest: that of a run of an earlier version, when
            it was first resumed by this one.
        code_folder: where the modules that the recipe names are looked up; "" is the working folder.
        seals: of the machines that may run them (``burnish.run.trust``).
    """

    recipes: Sequence[Mapping[str, Any]]
    unproved_until: int = 0
    code_folder: str = ""
    seals: Sequence[str] = ()

    @classmethod
    def of(cls, recipe: str, unproved_until: int = 0) -> RecipeHistory:
        """Return the history of a run with the text of a recipe."""
        return cls([parsed(recipe)], unproved_until)

    def text(self) -> str:
        """Return the content of ``recipes.json``, a line per recipe."""
        lines = ",\n".join(
            json.dumps(one, ensure_ascii=False, separators=(",", ":"), default=str) for one in self.recipes
        )
        head = {"unproved_until": self.unproved_until, "code_folder": self.code_folder, "seals": list(self.seals)}
        return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "recipes": [\n{lines}\n]}}\n'

    def difference(self, content: Mapping[str, Any]) -> str:
        """Return which keys of a recipe the run never had so, "" if there are none."""
        values, had = recipe_values(content), [recipe_values(recipe) for recipe in self.recipes]
        changes = [
            f"{key} was {_shown(had[-1], key)} and is {_shown(values, key)}"
            for key in dict.fromkeys([*values, *(key for recipe in had for key in recipe)])
            if not any(_equal(values.get(key), recipe.get(key)) for recipe in had)
        ]
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        return f"{changes[0]}{more}" if changes else ""

    def edited(self, run: Path) -> str:
        """Return how a run's recipe.toml was edited, a sentence; "" if it was not."""
        path = run / "recipe.toml"
        try:
            text = self.difference(parsed(regular_bytes(path).decode("utf-8")))
        except (OSError, UnicodeDecodeError, InputError) as error:
            return f"{path} cannot be read: {error}"
        return f"{path} was edited since the run began: {text}" if text else ""

    def foreign(self, content: Mapping[str, Any]) -> str:
        """Return how the recipe of a checkpoint is none of the run's, "" if it is."""
        return RecipeHistory([lasting(recipe) for recipe in self.recipes]).difference(content)


def parsed(recipe: str) -> dict[str, Any]:
    """Return the content of a recipe's text, as JSON would have it. Raises InputError if it is not TOML."""
    try:
        content: dict[str, Any] = json.loads(json.dumps(tomllib.loads(recipe), default=str))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"recipe.toml: not valid TOML: {error}") from error
    return content


def lasting(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a recipe that results depend on."""
    return {key: value for key, value in content.items() if key not in MAY_CHANGE}


def recipe_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key -> value of a recipe."""
    return dict(_flat(content, ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if below is None or (not value and key):
        yield key, value
        return
    for name, one in below:
        yield from _flat(one, f"{key}.{name}" if key else str(name))


def read_history(run: Path) -> RecipeHistory | None:
    """Return a run's history, None for a run of an earlier version. Raises InputError if the file is damaged."""
    path = run / HISTORY
    try:
        content = json.loads(regular_bytes(path))
        recipes, step = content["recipes"], content["unproved_until"]
        folder, seals = content.get("code_folder", ""), content.get("seals", [])
        if not (isinstance(step, int) and recipes and all(isinstance(one, dict) for one in recipes)):
            raise ValueError("no recipe")
        if not (isinstance(folder, str) and all(isinstance(one, str) for one in seals)):
            raise ValueError("its code_folder or its seals")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return RecipeHistory(recipes, step, folder, seals)


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False) if key in values else "unset"
    return text if len(text) <= 60 else f"{text[:57]}..."
