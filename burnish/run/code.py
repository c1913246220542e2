"""Source code that a run depends on: the modules of rewards, tasks and other objects that are not burnish's own."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from burnish.named_code import code_folder

_OWN = Path(__file__).resolve().parents[1]
_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
SITE = {"site-packages", "dist-packages"}
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib"))


def object_code(entry: object, name: str) -> tuple[list[Path], str | None]:
    """Return the source files that an object depends on, and its source text if it belongs to the running script.

    The files are its module's and those that it imports, directly or not, without burnish, the standard library and
    other installed packages. A script may change in order to resume a run, so only the object's own source counts
    there, with the names that it refers to.

    Args:
        name: the object's name in the recipe; if it is ``module:object``, the module is one more to begin with.
    """
    begin = {_module_name(entry), name.partition(":")[0] if ":" in name else ""} - {""}
    text = None
    if "__main__" in begin:
        parts = list(_sources(_unwrapped(entry), set()))
        text = "\n".join(part for part in parts if isinstance(part, str))
        begin |= {part.__name__ for part in parts if isinstance(part, ModuleType)}
    packages = {one.partition(".")[0] for one in begin}
    waiting, files = sorted(begin - {"__main__"}), dict[str, Path | None]()
    while waiting:
        module = waiting.pop()
        if module in files or module.partition(".")[0] in sys.stdlib_module_names:
            continue
        top = module.partition(".")[0]
        if module != top and (package := files.get(top) or _file(top)) and not _is_own(package, top in packages):
            continue  # spares a search through large packages
        files[module] = path = _file(module)
        if path is None or not _is_own(path, top in packages):
            files[module] = None
        elif path.suffix == ".py":
            waiting += _imports(path, module)
    return sorted({path for path in files.values() if path is not None}), text


def _file(module: str) -> Path | None:
    """Return the file of a module, which need not have been imported, also of ``code_folder``."""
    if loaded := getattr(sys.modules.get(module), "__file__", None):
        return Path(loaded).resolve()
    path: Sequence[str] | None = [str(code_folder()), *sys.path]
    spec, parts = None, module.split(".")
    for index in range(len(parts)):
        try:
            spec = PathFinder.find_spec(".".join(parts[: index + 1]), path)
            path = list(spec.submodule_search_locations or ()) if spec else None
        except (ImportError, KeyError, ValueError):  # a namespace package that has not been imported
            return None
        if not path and index < len(parts) - 1:
            return None
    return Path(spec.origin).resolve() if spec and spec.origin and spec.has_location else None


def _imports(file: Path, module: str) -> Iterator[str]:
    """Yield the names of all modules that a source file may import, at any depth of its code."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                source = ".".join(filter(None, (above, node.module)))
                yield source
                yield from (f"{source}.{alias.name}" for alias in node.names)


def _is_own(path: Path, same_package: bool) -> bool:
    if path.is_relative_to(_OWN) or not path.is_file():
        return False
    # Packages may also be installed for the user, by the system, or in a folder that a .pth file names.
    if SITE & set(path.parts) or any(path.is_relative_to(folder) for folder in INSTALLED):
        return same_package
    return not any(path.is_relative_to(folder) for folder in _STANDARD)


def _unwrapped(entry: object) -> Any:
    entry = getattr(entry, "function", entry)
    while isinstance(entry, functools.partial):
        entry = entry.func
    return inspect.unwrap(entry) if callable(entry) else entry


def _module_name(entry: object) -> str:
    if isinstance(entry, ModuleType):
        return entry.__name__
    entry = _unwrapped(entry)
    return str(getattr(entry, "__module__", None) or type(entry).__module__)


def _sources(entry: Any, seen: set[int]) -> Iterator[str | ModuleType]:
    """Yield the source of a function or class of the script, of what it refers to there, and other modules."""
    if not (inspect.isfunction(entry) or inspect.isclass(entry)):
        entry = type(entry)
    if id(entry) in seen:
        return
    seen.add(id(entry))
    members = [entry] if inspect.isfunction(entry) else [one for one in vars(entry).values() if inspect.isfunction(one)]
    try:
        yield inspect.getsource(entry)
    except (OSError, TypeError):  # typed into an interpreter
        yield from (repr((one.__code__.co_code, one.__code__.co_names)) for one in members)
    for function in members:
        for name in sorted(set(_names(function.__code__))):
            value = function.__globals__.get(name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == "__main__":
                yield from _sources(value, seen)
            elif isinstance(value, str | int | float | tuple | list | dict | set | frozenset):
                text = repr(sorted(map(repr, value)) if isinstance(value, set | frozenset) else value)
                if " at 0x" not in text:
                    yield f"{name} = {text}"
            elif isinstance(module := value if isinstance(value, ModuleType) else inspect.getmodule(value), ModuleType):
                yield module


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
