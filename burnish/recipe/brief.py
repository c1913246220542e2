"""The short form of a recipe that ``--dry-run`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tomli_w

if TYPE_CHECKING:
    from burnish.recipe.schema import Job

_ALWAYS = {"seed", "steps", "policy.model", "optimizer.learning_rate", "algorithm.use"}
"""Keys that are shown even if they have their defaults."""


def brief_toml(recipe: Job) -> str:
    """Return the keys of a resolved recipe that were set or differ from their defaults, one per line, as TOML.

    Reading it gives an equal recipe.
    """
    shown = dict(_leaves(recipe.model_dump(mode="json", exclude_unset=True)))
    shown |= _leaves(recipe.model_dump(mode="json", exclude_defaults=True))  # of a list, too, without the defaults
    every = dict(_leaves(recipe.model_dump(mode="json")))
    return "".join(
        f"{key} = {_value(shown.get(key, value))}\n" for key, value in every.items() if key in shown or key in _ALWAYS
    )


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each dotted key that is not None, with its value."""
    for name, value in section.items():
        key = prefix + tomli_w.dumps({name: 0}).removesuffix(" = 0\n")
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.")
        elif value is not None:
            yield key, value


def _value(value: Any) -> str:
    # Within a list, tomli_w writes tables inline, and newlines are its own: those of a string are escaped.
    text = tomli_w.dumps({"x": [value]}).removeprefix("x = [\n    ").removesuffix(",\n]\n")
    lines = text.replace("\n    ", "\n").split("\n")
    if len(lines) < 3 or any(isinstance(item, dict | list) for item in value):
        return "\n".join(lines)
    return f"[{' '.join(map(str.strip, lines[1:-1])).removesuffix(',')}]"
