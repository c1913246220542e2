"""The faster CPU library for each matrix product of a linear layer, measured once on a machine.

No library is the fastest on every processor, nor for every shape and direction on one of them. The three products of a
layer are therefore timed by both, in turns, and the choice is kept in the cache folder: one machine always computes the
same bits. A run records its choices, and is resumed with them.

S rows, and a weight [out, in].
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from burnish.errors import InputError
from burnish.system.files import write_json
from burnish.system.machine import processor
from burnish.system.paths import home
from burnish.system.reads import recorded_reads

DIRECTIONS = ("forward", "inputs", "weight")
"""Of a product: the output [S, out], the gradient of the inputs [S, in], the gradient of the weight [out, in]."""
LIBRARIES = ("torch", "onednn")
"""torch's own product (MKL on x86), and oneDNN's."""
MEASURED_ROWS = 512
WIDEST = 4096
"""Wider layers, such as the head, are measured as one of this width."""
LARGE = 1 << 18
"""Elements of the largest weight of a model from which on its products are measured."""
ROUNDS = 9
LONGEST = 2.0
"""Seconds after which a measurement of at least three rounds ends."""
MARGIN = 1.05
"""How many times as fast another library must be to replace the processor's usual one."""

_chosen: dict[str, str] = {}
"""Choices of this process, by direction and shape."""


def library(direction: str, outputs: int, inputs: int) -> str:
    """Return the library of a product, "torch" or "onednn", by the shape of the weight."""
    return _chosen.get(f"{direction} {_text((outputs, inputs))}") or usual_library()


def may_use_onednn() -> bool:
    """Return whether oneDNN computes any product."""
    return usual_library() == "onednn" or "onednn" in _chosen.values()


def choices() -> dict[str, str]:
    """Return the choices that were measured, such as "weight 576x1536" -> "torch"."""
    return dict(_chosen)


def use_choices(recorded: Mapping[str, str]) -> None:
    """Use the choices that a run recorded, in place of those of this process; what names no library is left out."""
    _chosen.clear()
    _chosen.update({key: name for key, name in recorded.items() if name in LIBRARIES and has_onednn_linear()})


def choose_libraries(shapes: Iterable[tuple[int, int]]) -> None:
    """Choose a library for weights of these shapes (out, in): as before on this machine, else by measurement."""
    wanted = sorted({(min(outputs, WIDEST), min(inputs, WIDEST)) for outputs, inputs in shapes})
    if not has_onednn_linear() or not any(outputs * inputs >= LARGE for outputs, inputs in wanted):
        return
    known, path = _kept()
    ready = {**known, **_chosen}
    missing = [shape for shape in wanted if any(f"{way} {_text(shape)}" not in ready for way in DIRECTIONS)]
    if missing:
        measured = _measure(missing)
        known = measured | _kept()[0]  # another process may have measured meanwhile: the first one counts
        if path is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, known)
    own = {f"{way} {_text(shape)}" for shape in wanted for way in DIRECTIONS}
    _chosen.update({key: name for key, name in known.items() if key in own and key not in _chosen})


def _kept() -> tuple[dict[str, str], Any]:
    """Return the choices in the cache folder, and the path of their file; None where there is no folder."""
    with suppress(OSError, InputError), recorded_reads(None):
        facts = [processor(), version("torch"), torch.get_num_threads()]
        path = home() / "products" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
        with suppress(OSError, ValueError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(kept, dict):
                return {str(key): str(name) for key, name in kept.items() if name in LIBRARIES}, path
        return {}, path
    return {}, None


def _measure(shapes: Iterable[tuple[int, int]]) -> dict[str, str]:
    """Time every direction of every shape by both libraries in turns, since the machine's speed may drift."""
    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for shape in shapes:
        calls |= _products(*shape)
    times: dict[str, list[list[float]]] = {key: [] for key in calls}
    with torch.no_grad():
        begin = time.perf_counter()
        for number in range(ROUNDS + 1):
            for key, pair in calls.items():
                times[key].append([_seconds(call) for call in pair])
            if number >= 3 and time.perf_counter() - begin > LONGEST:
                break
    usual = LIBRARIES.index(usual_library())
    chosen = {}
    for key, rounds in times.items():
        gain = median(seconds[usual] / seconds[1 - usual] for seconds in rounds[1:])
        chosen[key] = LIBRARIES[1 - usual if gain > MARGIN else usual]
    return chosen


def _products(outputs: int, inputs: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return for each direction the product by torch and by oneDNN; weights are reordered beforehand, as in training."""
    rows, grad = (torch.rand(MEASURED_ROWS, width) for width in (inputs, outputs))
    weight = torch.rand(outputs, inputs)
    total = torch.zeros(outputs, inputs)
    packed, turned = reorder(weight), reorder(weight.t())
    return {
        f"{way} {_text((outputs, inputs))}": pair
        for way, pair in zip(DIRECTIONS, (
            (lambda: torch.nn.functional.linear(rows, weight), lambda: onednn_linear(rows, packed)),
            (lambda: torch.mm(grad, weight), lambda: onednn_linear(grad, turned)),
            (lambda: total.addmm_(grad.t(), rows), lambda: total.add_(onednn_linear(grad.t(), rows.t()))),
        ), strict=True)
    }  # fmt: skip


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _text(shape: tuple[int, int]) -> str:
    return f"{min(shape[0], WIDEST)}x{min(shape[1], WIDEST)}"


def onednn_linear(rows: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``rows`` [S, in] times the transpose of a weight [out, in], plain or packed, plus the bias [out]."""
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return output


def reorder(weight: torch.Tensor) -> Any:
    """Return a weight [out, in] reordered for ``onednn_linear`` with many rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), MEASURED_ROWS)


@cache
def usual_library() -> str:
    """Return the library that is mostly the faster one on this processor: oneDNN on AMD's, where MKL holds back."""
    if has_onednn_linear():
        with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
            if any("AuthenticAMD" in line for line in file if line.startswith("vendor_id")):
                return "onednn"
    return "torch"


@cache
def has_onednn_linear(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether torch's oneDNN operators compute linear layers of this dtype on this processor."""
    weight = torch.ones(2, 2, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        product = torch.ops.mkldnn._linear_pointwise(weight, packed, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):  # an operator of another build, or none
        return False
    return bool((product == 2).all())
