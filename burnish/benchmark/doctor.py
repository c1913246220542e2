"""Report of ``burnish doctor``: the machine and what is installed, then its speed and its limits for SmolLM2-135M."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from burnish.benchmark import floor
from burnish.benchmark.harness import PARAMETERS
from burnish.benchmark.protocol import versions
from burnish.catalogue import store
from burnish.sandbox.layers import get_runner
from burnish.sandbox.names import STRONGEST, TITLES
from burnish.sandbox.verdict import Unavailable
from burnish.system.machine import Product, best, cores, gpus, load_average, memory, processor, products

PACKAGES = ("burnish", "torch", "transformers", "tokenizers", "peft", "sacrebleu")
DTYPES = ("float32", "bfloat16")
SMALL_STACK, LARGE_STACK = 64 << 20, 8 << 20
"""Bytes of weights of a short measurement, at few rows and at many: some tenths of a second each."""

_OPTIONAL = re.compile(r"(?P<package>[\w.-]+).*;.*extra == ['\"](?P<extra>[\w.-]+)['\"]")
"""A requirement of an extra, as package metadata writes it."""


def facts() -> dict[str, Any]:
    """Return what is known without measuring: processor, memory, GPUs, disk, packages and extras. Torch is not loaded."""
    sizes = memory() or (0, 0)
    extras = _extras()
    return {
        "processor": processor(), "cores": cores(), "load": load_average(), "memory": sizes[0], "memory_free": sizes[1],
        "gpus": gpus(), "disk_free": {str(path): _disk_free(path) for path in dict.fromkeys((Path.cwd(), store.home()))},
        "packages": dict.fromkeys(PACKAGES) | versions(*PACKAGES),
        "extras": [name for name, there in extras.items() if there],
        "extras_missing": [name for name, there in extras.items() if not there],
        "cache": {"folder": str(store.home()), "bytes": _cache_size()},
        "model": "there" if any(store.home().glob("models/smollm2-135m-*")) else "burnish fetch smollm2-135m",
    }  # fmt: skip


def sandbox() -> str:
    """Return the strongest layer that works here, after attacking it, or why there is none."""
    try:
        return TITLES[get_runner(STRONGEST).layer]
    except Unavailable as error:
        return f"none: {error}"


def measure_speeds(*, long: bool = False) -> dict[str, Any]:
    """Measure GFLOP/s and limits in tokens per second for SmolLM2-135M.

    In some tenths of a second torch's own float32 products; with ``long``, in a minute, every library and dtype.
    """
    import torch

    rows = (*floor.SMALL_ROWS, floor.LARGE_ROWS)
    if long:
        measured = products(rows, dtypes=DTYPES)
    else:
        few: dict[str, Any] = {"passes": 1, "names": ("linear",)}
        measured = products(floor.SMALL_ROWS, weight_bytes=SMALL_STACK, **few)
        measured += products((floor.LARGE_ROWS,), weight_bytes=LARGE_STACK, **few)
    measurable = {(one.dtype, one.rows) for one in measured}
    shown: list[Product] = [best(measured, n, dtype) for dtype in DTYPES for n in rows if (dtype, n) in measurable]
    machine = floor.speeds(measured)
    return {
        "torch_sees": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "products": [
            {"dtype": one.dtype, "rows": one.rows, "library": one.library, "gflops": one.gflops} for one in shown
        ],
        "limit": {
            **{f"sampling {n} rows": floor.tokens_per_second(PARAMETERS, machine.at(n)) for n in floor.SMALL_ROWS},
            "training": floor.tokens_per_second(PARAMETERS, machine.large, floor.TRAINING),
        },
    }


def fact_lines(known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the facts as lines of text."""
    load = "unknown" if known["load"] is None else f"{known['load']:.2f}"
    yield f"processor    {known['processor']}, {known['cores']} cores, load {load}"
    yield f"memory       {known['memory'] / 1e9:.1f} GB, {known['memory_free'] / 1e9:.1f} free"
    yield f"GPU          {', '.join(known['gpus']) or 'none that a driver lists'}"
    for folder, size in known["disk_free"].items():
        yield f"disk         {size / 1e9:.1f} GB free at {folder}"
    yield "packages     " + ", ".join(f"{name} {number or 'missing'}" for name, number in known["packages"].items())
    yield f"extras       {', '.join(known['extras']) or 'none'}"
    yield f"not there    {', '.join(known['extras_missing']) or 'none'} (pip install 'burnish[NAME]')"
    yield f"cache        {known['cache']['folder']}, {known['cache']['bytes'] / 1e9:.2f} GB"
    yield f"model        smollm2-135m: {known['model']}"


def speed_lines(measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured as lines of text."""
    yield f"torch sees   {measured['torch_sees']}"
    for one in measured["products"]:
        yield f"{one['dtype']:12} {one['gflops']:.0f} GFLOP/s at {one['rows']} rows ({one['library']})"
    for name, value in measured["limit"].items():
        yield f"limit        {value:.0f} tokens/s {name}, SmolLM2-135M in float32 (products alone)"


def _extras() -> dict[str, bool]:
    """Return the optional extras of the package, each with whether all that it requires is installed."""
    extras: dict[str, bool] = {}
    with suppress(PackageNotFoundError):
        for text in requires("burnish") or ():
            if (match := _OPTIONAL.match(text)) and match["extra"] != "dev":
                extras[match["extra"]] = extras.get(match["extra"], True) and _installed(match["package"])
    return dict(sorted(extras.items()))


def _installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def _disk_free(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _cache_size() -> int:
    folder = store.home()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
