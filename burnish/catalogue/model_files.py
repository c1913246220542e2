"""Files of a model: those that loading reads, and links to them that outlive the run they come from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from burnish.catalogue import store
from burnish.catalogue.convert import resolve_model
from burnish.catalogue.local_models import READ, START, adapter_base, check_model_folder


def model_files(model: str | Path, *, offline: bool = False) -> list[Path]:
    """Return the files that loading a model reads, those of an adapter's base included; [] if the hub has them.

    Raises InputError as ``resolve_model``.
    """
    source = resolve_model(str(model), offline=offline)
    folder = _snapshot(source) if isinstance(source, str) else source.resolve()
    if folder is None:
        return []
    inner = {path.relative_to(folder) for pattern in READ for path in folder.glob(pattern) if path.is_file()}
    files = [folder / path for path in sorted(inner) if path.name != store.MARKER]
    if (folder / "adapter_config.json").is_file():
        files += model_files(adapter_base(folder), offline=offline)
    return files


def pinned(model: Path) -> Path:
    """Return the checkpoint that a run's ``model``, or the run itself, stands for now; any other folder unchanged."""
    link = model / "model" if (model / "recipe.toml").is_file() else model
    loadable = any((link / name).is_file() for name in ("config.json", "adapter_config.json"))
    return link.resolve() if loadable and in_run(link.resolve()) else model


def in_run(folder: Path) -> bool:
    """Whether a model folder is a run's checkpoint, or a run's copy of its initial model, which the run may delete."""
    run = folder.parents[2] if len(folder.parents) > 2 and folder.parents[1].name == "checkpoints" else folder.parent
    return (run / "recipe.toml").is_file() and (run != folder.parent or folder.name == START)


def link_model(source: Path, target: Path) -> None:
    """Fill a folder with a model's files: hard links, which take no space, or copies on another disk.

    An adapter's base comes along, as ``base``, if it is in a run too. Raises InputError if a model is incomplete.
    """
    for path in sorted(check_model_folder(source).rglob("*")):
        if path.is_file():
            _link(path, target / path.relative_to(source))
    config = target / "adapter_config.json"
    if config.is_file() and in_run(base := Path(adapter_base(source)).absolute().resolve()):
        link_model(base, target / "base")
        described = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": "./base"}
        config.unlink()  # a link: the original must not change
        config.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _snapshot(hub_id: str) -> Path | None:
    """Return the folder of a hub model's revision that was downloaded last, or None without one."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("adapter_config.json", "config.json"):
        if isinstance(path := try_to_load_from_cache(hub_id, name), str):
            return Path(path).parent
    return None
