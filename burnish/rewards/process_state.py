"""State of the process that a reward function leaves as it found it, whatever it sets.

After each call, these are put back: warning filters, the standard streams, the working folder, torch's default dtype,
gradient mode and threads. After all calls of a reward for a step, also: torch's default device, inference mode,
deterministic algorithms and anomaly detection, numpy's handling of floating-point errors, the recursion limit, the
handlers of Ctrl-C and SIGTERM, and random generators. The rewards draw from states of their own meanwhile, so that a
function that draws does not get the same numbers at every step. Environment variables stay as the function left them:
libraries are configured by them once.
"""

from __future__ import annotations

import operator
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from burnish.system.lazy import loaded

Setting = tuple[Callable[[], Any], Callable[[Any], Any], Any]
"""A setting's getter, its setter, and the value to put back."""
_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Settings:
    """Settings of the process: those that are put back after each call of a reward, and those after all of them.

    torch's gradient and inference mode belong to a thread, so they are those of the thread that makes the object.
    """

    def __init__(self) -> None:
        self._streams = sys.stdin, sys.stdout, sys.stderr
        # Filters first: what is freed on the way back, such as a file, shall not be an error to whoever made it one.
        each: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [(_filters, _set_filters), (_folder, _enter)]
        others: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
            (sys.getrecursionlimit, sys.setrecursionlimit),
        ]  # fmt: skip
        if threading.current_thread() is threading.main_thread():
            others.append((_handlers, _set_handlers))
        if (torch := loaded("torch")) is not None:
            each += [
                (torch.get_default_dtype, torch.set_default_dtype), (torch.is_grad_enabled, torch.set_grad_enabled),
                (torch.get_num_threads, torch.set_num_threads),
            ]  # fmt: skip
            others += [
                (torch.get_default_device, _set_device), (torch.is_inference_mode_enabled, _set_inference_mode),
                (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
                (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
            ]  # fmt: skip
        if (numpy := loaded("numpy")) is not None:
            others.append((numpy.geterr, lambda value: numpy.seterr(**value)))
        self._each: list[Setting] = [(read, write, read()) for read, write in each]
        self._others: list[Setting] = [(read, write, read()) for read, write in others]

    def restore(self) -> None:
        """Put back what a call has changed."""
        _restore(self._each)
        if any(map(operator.is_not, (sys.stdin, sys.stdout, sys.stderr), self._streams)):
            sys.stdin, sys.stdout, sys.stderr = self._streams

    def restore_all(self) -> None:
        """Put back what the calls have changed."""
        _restore(self._others)
        self.restore()


def _restore(settings: list[Setting]) -> None:
    for read, write, before in settings:
        if read() != before:
            write(before)


@dataclass(slots=True)
class _Generator:
    """A random generator: the state that rewards draw from, and the one that the process was left with."""

    own: Any
    left: Any


_GENERATORS: dict[str, _Generator] = {}


def forget_randomness() -> None:
    """Let rewards draw from the states of the process again, as a new scorer does."""
    _GENERATORS.clear()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Let rewards draw from random generators of their own, and put those of the process back.

    They continue where the rewards before them ended, unless the process has drawn or was seeded since, or a new scorer
    was made: then they begin with its state, so that a seed that a program sets reaches its rewards.
    """
    access = _generators()
    before = {name: read() for name, (read, _) in access.items()}
    for name, (_, write) in access.items():
        generator = _GENERATORS.get(name)
        if generator is not None and _equal(generator.left, before[name]):
            write(generator.own)
    try:
        yield
    finally:
        for name, (read, write) in access.items():
            now = read()
            if not _equal(now, before[name]):
                _GENERATORS[name] = _Generator(now, before[name])
                write(before[name])


def _generators() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {"random": (random.getstate, random.setstate)}
    if (numpy := loaded("numpy")) is not None and "numpy.random" in sys.modules:
        found["numpy"] = numpy.random.get_state, numpy.random.set_state
    if (torch := loaded("torch")) is not None:
        found["torch"] = torch.get_rng_state, torch.set_rng_state
        if torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state, torch.cuda.set_rng_state
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    equal = one == other
    return bool(equal.all() if hasattr(equal, "all") else equal)


def _folder() -> str | None:
    with suppress(OSError):  # deleted
        return os.getcwd()
    return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def _filters() -> list[Any]:
    return list(warnings.filters)


def _set_filters(filters: list[Any]) -> None:
    # In place, as the list itself is what the interpreter reads. What was shown once is not shown again.
    warnings.filters[:] = filters  # type: ignore[index]


def _handlers() -> tuple[Any, ...]:
    return tuple(map(signal.getsignal, _HANDLED))


def _set_handlers(handlers: tuple[Any, ...]) -> None:
    for number, handler in zip(_HANDLED, handlers, strict=True):
        if handler is not None:  # None: not of Python
            signal.signal(number, handler)


def _set_device(device: Any) -> None:
    # "cpu" is the default of a process that has set none; set explicitly, it would slow every call of torch down.
    sys.modules["torch"].set_default_device(None if device.type == "cpu" else device)


_MODES: list[Any] = []
"""Modes that are never left; a mode ends with its object."""


def _set_inference_mode(enabled: bool) -> None:
    mode = sys.modules["torch"].inference_mode(enabled)
    mode.__enter__()
    _MODES.append(mode)
