"""Models in run folders: refused if they are not what their run saved, or if the folder leads out of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.system.confined import leads_inside, refuse_escapes
from burnish.system.file_records import file_damage
from burnish.system.files import regular_bytes

INPUTS, OWN = "inputs.json", "<run>/"
"""What a run read when it began, and the prefix of names in its own folder; ``burnish.run.inputs`` writes them."""
MANIFEST = "manifest.json"
"""What a checkpoint's files were when they were saved; ``burnish.run.manifest`` writes it."""


def refuse_damaged_checkpoint(model: Path) -> None:
    """Raise InputError if a model folder is a run's checkpoint and not what the run saved; any other folder passes.

    Files are compared by SHA-256, also those that the run folder has for the run to read, such as the base of an adapter.
    A run of a version without manifests passes too.
    """
    folder = model.resolve()
    checkpoint = folder.parent
    run = checkpoint.parents[1] if len(checkpoint.parents) > 1 else checkpoint
    if checkpoint.parent.name != "checkpoints" or not (run / "recipe.toml").is_file():
        return
    refuse_escapes(checkpoint)
    path = checkpoint / MANIFEST
    if not os.path.lexists(path):
        return
    prefix = f"{folder.name}/"
    try:
        manifest: Any = json.loads(regular_bytes(path))
        records = {name: one for name, one in manifest["files"].items() if name.startswith(prefix)}
        present = {f"{prefix}{one.relative_to(folder).as_posix()}" for one in folder.rglob("*") if not one.is_dir()}
        damage = [*_damage(checkpoint, records), *_damage(run, manifest["beside"])]
        if f"step-{manifest['step']}" != checkpoint.name:
            raise ValueError(f"it is of step {manifest['step']}")
        path = run / INPUTS
        damage += _damage(run, _own_inputs(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); {_advice(run)}") from error
    damage += [f"{checkpoint / name} is not a file of this checkpoint" for name in sorted(present - records.keys())]
    if damage:
        raise InputError(f"{damage[0]}; {_advice(run)}")


def _damage(folder: Path, records: Mapping[str, Any]) -> list[str]:
    """Return what differs of the files with a record. Raises ValueError if the name of one leads out of the folder."""
    for name in records:
        if not leads_inside(name):
            raise ValueError(f"'{name}' leads out of the folder")
    return [text for name, record in records.items() if (text := file_damage(folder / name, record))]


def _own_inputs(path: Path) -> dict[str, Any]:
    """Return name -> record of the files that a run has read from its own folder."""
    if not os.path.lexists(path):
        return {}
    files: list[Any] = list(json.loads(regular_bytes(path))["inputs"].values())
    return {
        name.removeprefix(OWN): record for some in files for name, record in some.items()
        if name.startswith(OWN) and "size" in record and record["sha256"]
    }  # fmt: skip


def _advice(run: Path) -> str:
    return f"restore it, see what else differs with: burnish check {run}, or copy the model to a folder of its own"
