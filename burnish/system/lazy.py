"""Postponed imports of slow packages."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def postpone_import(package: str) -> None:
    """Let ``import package`` return at once; the package is loaded when one of its attributes is used first.

    Does nothing if the package is loaded already or not installed.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is not None and spec.loader is not None:
        sys.modules[package] = _Postponed(spec)


def loaded(package: str) -> Any:
    """Return a package if it is imported, and not only postponed; None if not."""
    module = sys.modules.get(package)
    return None if isinstance(module, _Postponed) else module


_LOADING = threading.RLock()
"""Held by the thread that loads a package; the others wait until it is complete."""
PATIENCE = 60.0
"""Seconds that a thread waits. One that imports a submodule meanwhile may hold what the loading thread waits for."""


class _Postponed(ModuleType):
    """A package whose code runs at the first use of an attribute.

    Unlike the module of ``importlib.util.LazyLoader``, it is not loaded by a second ``import``, which reads
    ``__spec__``. It has no ``__path__`` before, so that the import of a submodule loads it.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        module = importlib.util.module_from_spec(spec)
        self.__dict__.update({name: value for name, value in vars(module).items() if name != "__path__"})

    def __getattr__(self, name: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not _LOADING.acquire(timeout=0.05):
            if name in vars(self):
                return vars(self)[name]
            if time.monotonic() > end:
                raise ImportError(f"another thread is loading {self.__name__}: import it before the threads start")
        try:
            # With __path__ it is loaded, or its own code asks for what is not there yet.
            if "__path__" not in vars(self):
                self._load()
            return ModuleType.__getattribute__(self, name)
        finally:
            _LOADING.release()

    def _load(self) -> None:
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        self.__path__ = list(spec.submodule_search_locations or ())
        try:
            spec.loader.exec_module(self)
        except BaseException:
            del self.__path__  # the next use reports the cause again
            raise
        self.__class__ = ModuleType  # type: ignore[assignment]  # from here on it is an ordinary module

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)
