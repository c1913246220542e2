"""Lazy registry of everything that is chosen by name.

A name is looked up among the registered objects, then among burnish's own entries (imported on first use), then among
the entry points of the group ``burnish.<kind>s``. ``module:object`` reaches anything importable.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from burnish.errors import InputError, is_interrupt, one_line
from burnish.named_code import before_running, code_folder

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" if a choice is close to the name, else an empty string."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Registry(Generic[T]):
    """Objects of one kind by name.

    Args:
        kind: singular, for messages and the entry-point group, such as "reward".
        builtin: name -> "module:object" of burnish's own entries, imported on first use.
        wrap: turns the object of a dotted path or an entry point into the registered one (identity by default).
    """

    def __init__(
        self, kind: str, builtin: Mapping[str, str] | None = None, wrap: Callable[[str, object], T] | None = None
    ) -> None:
        self.kind = kind
        self._builtin = dict(builtin or {})
        self._wrap = wrap
        self._entries: dict[str, T] = {}
        self._paths: dict[str, T] = {}

    def add(self, name: str, entry: T, *, replace: bool = False) -> T:
        """Register an object under a new name, or replace the same object, defined again (a notebook cell run twice).

        Raises InputError if the name belongs to another object, unless ``replace``.
        """
        module, qualname = _origin(entry)
        replaces = replace or name not in self._entries or _origin(self._entries[name]) == (module, qualname)
        # burnish's own module registers what it ships when it is imported.
        if not replaces or self._builtin.get(name) not in (None, f"{module}:{qualname}"):
            raise InputError(f"a {self.kind} named '{name}' is registered already: choose another name")
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        """Return all names, sorted, without importing anything."""
        return sorted({*self._entries, *self._builtin, *self._points().names})

    def is_lasting(self, name: str) -> bool:
        """Whether another process finds the name too: it is burnish's own, an entry point's or a path."""
        return ":" in name or name in self._builtin or name in self._points().names

    def __contains__(self, name: str) -> bool:
        return name in self._entries or name in self._builtin or name in self._points().names

    def get(self, name: str) -> T:
        """Return the object of this name. Raises InputError with the list of names if there is none."""
        if name in self._entries:
            return self._entries[name]
        before_running(name, self.kind)
        if name in self._builtin:
            return self._loaded(name, import_object(self._builtin[name], self.kind))
        if name in self._paths:
            return self._paths[name]
        if ":" in name:
            self._paths[name] = self._wrapped(name, import_object(name, self.kind))
            return self._paths[name]
        for point in self._points():
            if point.name == name:
                return self._loaded(name, point.load())
        names = self.names()
        raise InputError(
            f"there is no {self.kind} named '{name}'{nearest(name, names)}; "
            f"known: {', '.join(names) or 'none'}; or write 'module:object'"
        )

    def _points(self) -> EntryPoints:
        from importlib.metadata import entry_points  # slow, and so is the search

        return entry_points(group=f"burnish.{self.kind}s")

    def _loaded(self, name: str, entry: object) -> T:
        self._entries[name] = self._wrapped(name, entry)
        return self._entries[name]

    def _wrapped(self, name: str, entry: object) -> T:
        return self._wrap(name, entry) if self._wrap else cast("T", entry)


def factory(kind: str, name: str, entry: object) -> Callable[..., Any]:
    """Return the entry of a registry of factories. Raises InputError if it is not callable."""
    if not callable(entry):
        raise InputError(f"{kind} '{name}' is neither a class nor a function but a {type(entry).__name__}")
    return entry


def has_kind(value: object, default: object) -> bool:
    """Whether an option's value has the type of its default; any value does if the default is None."""
    kinds = (int, float) if isinstance(default, float) else type(default)
    same = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
    return default is None or same


def _origin(entry: object) -> tuple[object, object]:
    function = getattr(entry, "function", entry)
    name = getattr(function, "__qualname__", "<lambda>")
    # All lambdas of a module share one name without being the same.
    return getattr(function, "__module__", None), id(function) if "<lambda>" in name else name


def import_object(path: str, kind: str = "object") -> object:
    """Return the object at ``module:object``, also of ``code_folder``. Raises InputError if it is missing or withheld."""
    before_running(path, kind)
    module_name, _, attribute = path.partition(":")
    here = str(code_folder())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{kind} '{path}': cannot import '{module_name}' ({error}); put its file into {here}, where the recipe is, or "
            "its folder into PYTHONPATH"
        ) from error
    except BaseException as error:
        if is_interrupt(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"{kind} '{path}': importing '{module_name}' raised {type(error).__name__}: {one_line(error)} "
            f"({frame.filename}, line {frame.lineno})"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    entry: object = module
    for part in attribute.split("."):
        if not hasattr(entry, part):
            public = [name for name in dir(entry) if not name.startswith("_")]
            raise InputError(f"{kind} '{path}': '{module_name}' has no '{attribute}'{nearest(attribute, public)}")
        entry = getattr(entry, part)
    return entry
