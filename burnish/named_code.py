"""Code that a recipe or a folder names as ``module:object``: where it is looked up, and whether it may run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from burnish.errors import InputError

OWN = "burnish"


@dataclass(frozen=True, slots=True)
class CodeRules:
    """What holds for the code that is named while a verb works.

    Attributes:
        folder: where modules are looked up first; None is the working folder.
        refusal: why none of it may run, and the fix; "" if it may.
        used: module -> a sentence about the file that it is imported from.
    """

    folder: Path | None = None
    refusal: str = ""
    used: dict[str, str] = field(default_factory=dict)


_rules = CodeRules()


@contextmanager
def code_rules(rules: CodeRules) -> Iterator[None]:
    """Let rules hold for a block."""
    global _rules
    before, _rules = _rules, rules
    try:
        yield
    finally:
        _rules = before


def used_code() -> list[str]:
    """Return a sentence for each module that the rules of now have let run: its file, and what the recipe names."""
    return list(_rules.used.values())


def code_folder() -> Path:
    """Return the folder in which the modules of ``module:object`` are looked up before any other."""
    return _rules.folder or Path.cwd()


def is_foreign(name: str) -> bool:
    """Whether a name is ``module:object`` outside of burnish."""
    return ":" in name and name.partition(":")[0].partition(".")[0] != OWN


def is_withheld(name: str) -> bool:
    """Whether a name is code that may not run now."""
    return is_foreign(name) and bool(_rules.refusal)


def before_running(name: str, kind: str) -> None:
    """Note the code of ``module:object``, which is about to run. Raises InputError if it may not."""
    if not is_foreign(name):
        return
    module = name.partition(":")[0]
    where = module_file(module)
    if _rules.refusal:
        raise InputError(f"{kind} '{name}' is code{f' in {where}' if where else ''}: {_rules.refusal}")
    if where:
        _rules.used.setdefault(module, f"runs {where}, which the recipe names: {kind} '{name}'")


def withholds_code() -> bool:
    """Whether no code that is named may run now."""
    return bool(_rules.refusal)


def before_program(key: str, value: str, what: str) -> None:
    """Note a program or a cluster that a recipe's key names, before it is used. Raises InputError if it may not be."""
    if _rules.refusal:
        raise InputError(f"{key} = '{value}' {what}: {_rules.refusal}")
    _rules.used.setdefault(key, f"uses {value}, which the recipe names: {key}")


def module_file(module: str) -> Path | None:
    """Return the file that a module would be imported from, without running anything; None if it is not found."""
    if loaded := getattr(sys.modules.get(module), "__file__", None):
        return Path(loaded)
    path: list[str] | None = [str(code_folder()), *sys.path]
    spec = None
    for index, _ in enumerate(parts := module.split(".")):
        try:
            spec = PathFinder.find_spec(".".join(parts[: index + 1]), path)
        except (ImportError, KeyError, ValueError):
            return None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None
