"""The sources of a run by the recipe's keys: files of data, models and options, and the code that the recipe names."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from burnish.catalogue import store
from burnish.catalogue.model_files import model_files
from burnish.errors import InputError
from burnish.recipe.schema import Job, Recipe
from burnish.recipe.sections import OpenSection
from burnish.rewards.registry import REWARDS
from burnish.run.code import object_code
from burnish.run.folder import START, Run
from burnish.system.paths import expanded
from burnish.system.reads import Reads
from burnish.tasks.registry import TASKS

PATH_OPTIONS = ("path", "folder", "model", "weights", "schema_file")
"""Options whose value may be a path of one word; in others, a word that a file has as its name is not a path."""
WRITTEN = ("cache",)
"""Options that name a file which the run itself writes."""
_SYSTEM = tuple(Path(name) for name in ("/proc", "/sys", "/dev", "/etc"))


def run_sources(
    run: Run,
    recipe: Job,
    reads: Reads,
    objects: Mapping[str, tuple[str, object]] | None = None,
    *,
    offline: bool = False,
) -> dict[str, dict[str, Path | str]]:
    """Return key -> name -> path or content of everything that the run reads, besides burnish and the packages.

    Args:
        recipe: the recipe whose ``policy.model`` is what was loaded.
        reads: what was read while the prompts or rows were built.
        objects: recipe key -> name and object whose source code counts, besides the task, the rewards and the module.
    """
    sources: dict[str, dict[str, Path | str]] = {}
    policy, own = recipe.policy, run.folder / START
    built = policy.use in ("lstm", "module") and own.is_dir()
    if policy.use == "causal_lm":
        sources["policy.model"] = {str(path): path for path in model_files(policy.model, offline=offline)}
    elif built:
        sources["policy"] = {str(path): path for path in sorted(own.rglob("*")) if path.is_file()}
    for key, values in _tables(recipe):
        # The run's own copy replaces the weights and the vocabulary of a policy that is built.
        for option, value in values.items():
            if key == "policy" and (built or option == "model"):
                continue
            if files := list(_option_files(option, value, offline)):
                sources[f"{key}.{option}"] = {str(path): path for path in files}
    for key, section in _rewards(recipe):
        for path in REWARDS.get(section.use).files(section.options):
            sources.setdefault(f"{key}.use", {})[str(path)] = path
    data = "task" if isinstance(recipe, Recipe) else "data"
    for name, content in reads.items():
        if content is not None:
            sources.setdefault(_dataset_key(recipe, data, name), {})[name] = content
        elif _is_input(path := Path(name), run):
            key = _option_key(recipe, path) or f"{data}.use"
            sources.setdefault(key, {})[name] = path
    for key, (name, entry) in _code(recipe, objects or {}).items():
        files, text = object_code(entry, name)
        for path in files:
            sources.setdefault(key, {})[str(path)] = path
        if text is not None:
            sources.setdefault(key, {})[f"the source of '{name}'"] = text
    return sources


def _tables(recipe: Job) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the tables of a recipe whose values may be paths, under their keys."""
    values = recipe.model_dump()
    for key in ("policy", "task", "data"):
        if key in values:
            yield key, values[key]
    evaluation = values["evaluation"]
    for key, tables in (
        ("reward", values.get("reward")),
        ("evaluation.metrics", evaluation.get("metrics")),
        ("evaluation.sets", evaluation.get("sets")),
    ):
        for index, table in enumerate(tables or []):
            yield f"{key}.{index}", table


def _option_paths(option: str, value: Any) -> Iterator[Path]:
    """Yield the paths that an option's value may be, or list."""
    if isinstance(value, list):
        for one in value:
            yield from _option_paths(option, one)
    is_text = isinstance(value, str) and value and len(value) < 1024 and "\n" not in value and option not in WRITTEN
    if is_text and (option in PATH_OPTIONS or any(sign in value for sign in "./\\~")):
        with suppress(InputError):
            yield expanded(value).absolute()


def _option_files(option: str, value: Any, offline: bool) -> Iterator[Path]:
    for path in _option_paths(option, value):
        with suppress(OSError, ValueError, InputError):  # a text that is not a path
            if path.is_file():
                yield path
            elif path.is_dir():
                yield from _folder_files(path, offline)


def _folder_files(folder: Path, offline: bool) -> list[Path]:
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json", "recipe.toml")):
        return model_files(folder, offline=offline)
    hidden = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in hidden if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _option_key(recipe: Job, path: Path) -> str | None:
    """Return the key of the option that names this file of rows, its folder or a pattern that matches it."""
    for section, table in _row_tables(recipe):
        for option, value in table.items():
            for named in _option_paths(option, value):
                if path.is_relative_to(named) or path.match(str(named)):
                    return f"{section}.{option}"
    return None


def _row_tables(recipe: Job) -> list[tuple[str, Mapping[str, Any]]]:
    return [each for each in _tables(recipe) if each[0] in ("task", "data") or each[0].startswith("evaluation.sets.")]


def _dataset_key(recipe: Job, data: str, name: str) -> str:
    """Return the key of the data set that a source's name has; that of the task or of ``[data]`` comes first."""
    keys = [key for key, table in _row_tables(recipe) if name == f"dataset '{table.get('dataset')}'"]
    return f"{keys[0] if keys else data}.dataset"


def hub_home() -> Path:
    """Return the folder of Hugging Face's caches."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def _is_input(path: Path, run: Run) -> bool:
    """Whether a file that was read is a user's: not of the system, of Python, of a cache, of the run, nor code."""
    if path.suffix in (".py", ".pyc", ".so", ".pyd", ".lock") or not path.is_file():
        return False
    python = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    environment = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
    roots = [*_SYSTEM, *python, *environment, store.home(), hub_home(), run.folder, Path(__file__).parents[1]]
    resolved = path.resolve()
    return not any(resolved.is_relative_to(root.resolve()) for root in roots)


def _code(recipe: Job, objects: Mapping[str, tuple[str, object]]) -> dict[str, tuple[str, object]]:
    """Return recipe key -> name and object of everything whose code the recipe names."""
    named = dict(objects)
    if (module := recipe.policy.module) is not None:
        named["policy.module"] = (module, sys.modules.get(module.partition(":")[0]))
    if isinstance(recipe, Recipe):
        named["task.use"] = (recipe.task.use, TASKS.get(recipe.task.use))
    for key, section in _rewards(recipe):
        named[f"{key}.use"] = (section.use, REWARDS.get(section.use))
    return named


def _rewards(recipe: Job) -> Iterator[tuple[str, OpenSection]]:
    """Yield the rewards and metrics of a recipe that samples, under their keys."""
    if isinstance(recipe, Recipe):
        for key, sections in (("reward", recipe.reward), ("evaluation.metrics", recipe.evaluation.metrics)):
            for index, section in enumerate(sections):
                yield f"{key}.{index}", section
