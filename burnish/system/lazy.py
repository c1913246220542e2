"""Postponed imports of slow packages."""

from __future__ import annotations

import importlib.util
import sys
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
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]  # from here on it is an ordinary module, also for the imports in its own code
        self.__path__ = list(spec.submodule_search_locations or ())
        spec.loader.exec_module(self)
        return getattr(self, name)
