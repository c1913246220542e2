"""The libraries of a run's matrix products, which it keeps when it is resumed."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from burnish.run.folder import Run
from burnish.system.files import explained, write_json

KEY = "products"
"""Entry of environment.json: library -> the products that it computes, by direction and shape."""


def restore_libraries(run: Run) -> None:
    """Use the libraries that a run began with; a new run chooses its own when its model is loaded."""
    from burnish.policies.kernels.products import use_choices

    recorded = _environment(run).get(KEY)
    grouped = recorded.items() if isinstance(recorded, dict) else ()
    use_choices({product: name for name, products in grouped for product in str(products).split(", ")})


def record_libraries(run: Run) -> None:
    """Write the libraries in use to environment.json, unless it names them or cannot be read."""
    from burnish.policies.kernels.products import choices

    environment = _environment(run)
    if environment and KEY not in environment and (chosen := choices()):
        path = run.folder / "environment.json"
        grouped = {
            name: ", ".join(sorted(key for key in chosen if chosen[key] == name)) for name in set(chosen.values())
        }
        with explained(f"cannot write {path}", run.advice_on_full_disk):
            write_json(path, {**environment, KEY: dict(sorted(grouped.items()))})


def _environment(run: Run) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
        if isinstance(environment, dict):
            return environment
    return {}
