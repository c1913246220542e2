"""Report of ``burnish doctor``: the machine's speed, its limits for SmolLM2-135M, and the installed packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.benchmark import floor
from burnish.benchmark.harness import PARAMETERS
from burnish.benchmark.protocol import versions
from burnish.catalogue import store
from burnish.system.machine import best, cores, load_average, memory, processor, products

PACKAGES = (
    "burnish", "torch", "transformers", "tokenizers", "peft", "sacrebleu", "reasoning-gym", "ray", "vllm", "wandb",
)  # fmt: skip


def examined() -> dict[str, Any]:
    """Measure for some seconds: GFLOP/s, bytes of memory, and limits in tokens per second for SmolLM2-135M."""
    rows = (*floor.SMALL_ROWS, floor.LARGE_ROWS)
    measured = products(rows, dtypes=("float32", "bfloat16"))
    speeds = floor.speeds(measured)
    sizes = memory() or (0, 0)
    return {
        "processor": processor(), "cores": cores(), "load": load_average(), "memory": sizes[0], "memory_free": sizes[1],
        "products": [
            {"dtype": dtype, "rows": count, "library": one.library, "gflops": one.gflops}
            for dtype in ("float32", "bfloat16") for count in rows for one in [best(measured, count, dtype)]
        ],
        "limit": {
            **{f"sampling {n} rows": floor.tokens_per_second(PARAMETERS, speeds.at(n)) for n in floor.SMALL_ROWS},
            "training": floor.tokens_per_second(PARAMETERS, speeds.large, floor.TRAINING),
        },
        "packages": dict.fromkeys(PACKAGES) | versions(*PACKAGES),
        "cache": {"folder": str(store.home()), "bytes": _cache_size()},
        "model": "there" if any(store.home().glob("models/smollm2-135m-*")) else "burnish fetch smollm2-135m",
    }  # fmt: skip


def lines(facts: Mapping[str, Any]) -> Sequence[str]:
    """Return the report as lines of text."""
    report = [
        f"processor    {facts['processor']}, {facts['cores']} cores, load {facts['load']}",
        f"memory       {facts['memory'] / 1e9:.1f} GB, {facts['memory_free'] / 1e9:.1f} free",
    ]
    report += [
        f"{one['dtype']:12} {one['gflops']:.0f} GFLOP/s at {one['rows']} rows ({one['library']})"
        for one in facts["products"]
    ]
    report += [
        f"limit        {value:.0f} tokens/s {name}, SmolLM2-135M in float32 (products alone)"
        for name, value in facts["limit"].items()
    ]
    packages = facts["packages"].items()
    return [
        *report,
        "packages     " + ", ".join(f"{name} {number}" for name, number in packages if number),
        "missing      " + ", ".join(name for name, number in packages if not number),
        f"cache        {facts['cache']['folder']}, {facts['cache']['bytes'] / 1e9:.2f} GB",
        f"model        smollm2-135m: {facts['model']}",
    ]


def _cache_size() -> int:
    folder = store.home()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
