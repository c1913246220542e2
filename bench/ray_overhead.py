"""What a Ray cluster on one machine costs: ``python -m bench.ray_overhead`` runs ``short`` locally and with Ray.

Each case is a training run of its own, one after another; the local one comes first and last, to show what the machine
drifts. A step's seconds are the median of the steps after the first two. Memory is the largest sum of the processes'
proportional shares (PSS), read once a second before and during the first two steps: reading it takes the processor, the
more the more processes there are, and holds up a process that takes memory meanwhile. Writes bench/results/ray.md,
ray.json and ray.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.growth import OUT
from burnish.run.folder import read_lines
from burnish.system.machine import cores, processor

WARMUP, STEPS = 2, 3
MEASURED = ("evaluation.samples_per_prompt=2", "evaluation.resamples=100")
"""The job has one held-out prompt, which alone is too few to compare."""
RAY = ("backend.use=ray",)
CASES: Mapping[str, Sequence[str]] = {
    "local": (),
    "1 sampler": RAY,
    "local, nothing reused": ("optimizer.reuse_sampling=false",),
    "2 samplers": (*RAY, "backend.samplers=2"),
    "4 samplers": (*RAY, "backend.samplers=4"),
    "2 learners": (*RAY, "backend.learners=2", "threads=1"),
    "local again": (),
}


def child(job: str, run: str, *options: str) -> None:
    """Train the job's recipe with these options."""
    import burnish
    from burnish.benchmark.protocol import BenchmarkJob
    from burnish.benchmark.runner import recipe_for
    from burnish.reports.terminal.progress import make_observer

    chosen = replace(BenchmarkJob.read(Path(job)), options=(*MEASURED, *options))
    burnish.train(recipe_for(chosen, Path(job)), run_dir=run, observer=make_observer(quiet=True), offline=True)


def shared_memory(process: psutil.Process) -> int:
    """Return the proportional memory of a process and its children, bytes."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total


def measured(job: Path, run: Path, options: Sequence[str]) -> dict[str, float]:
    """Run one case; return its median seconds a step, of sampling, of weights, and its largest memory in GB."""
    command = [sys.executable, "-m", "bench.ray_overhead", "--child", str(job), str(run), *options]
    started = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL)
    peak = 0
    while started.poll() is None:
        path = run / "metrics.jsonl"
        if not path.exists() or len(list(read_lines(path))) < WARMUP:
            with suppress(psutil.Error):
                peak = max(peak, shared_memory(psutil.Process(started.pid)))
        time.sleep(1)
    if started.returncode:
        raise SystemExit(f"{options}: status {started.returncode}")
    rows = list(read_lines(run / "metrics.jsonl"))[WARMUP:]
    shutil.rmtree(run)  # a checkpoint has 1.6 GB
    found = {name: median(row.get(f"time/{name}", 0.0) for row in rows) for name in ("step", "generate", "weights")}
    return {**found, "least": min(row["time/step"] for row in rows), "memory": peak / 1e9}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        f"Processor {processor()}, {cores()} cores, SmolLM2-135M, `short` (8 x 8 samples of 64 tokens).", "",
        "| run | seconds per step | least | against local | sampling | weights | memory of all processes, GB |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    local = (found["local"]["step"] + found["local again"]["step"]) / 2
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['step']:.2f} | {row['least']:.2f} | {row['step'] / local - 1:+.1%} | {row['generate']:.2f} "
            f"| {row['weights']:.2f} | {row['memory']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def drawing(found: Mapping[str, Mapping[str, float]]) -> str:
    """Two panels of bars: seconds of a step (dark: sampling), and memory, by number of samplers."""
    names = ("local", "1 sampler", "2 samplers", "4 samplers")
    parts = []
    for panel, (title, key, unit) in enumerate((("seconds per step", "step", "s"), ("memory", "memory", "GB"))):
        left, highest = 40 + 330 * panel, max(found[name][key] for name in names)
        parts.append(f'<text x="{left}" y="24" font-weight="bold">{title}</text>')
        for index, name in enumerate(names):
            row, x = found[name], left + 72 * index
            height = 170 * row[key] / highest
            parts.append(f'<rect x="{x}" y="{220 - height:.1f}" width="50" height="{height:.1f}" fill="#9fc3dc"/>')
            if key == "step":
                dark = 170 * row["generate"] / highest
                parts.append(f'<rect x="{x}" y="{220 - dark:.1f}" width="50" height="{dark:.1f}" fill="#2f6f9f"/>')
            parts.append(f'<text x="{x + 25}" y="{214 - height:.1f}" text-anchor="middle">{row[key]:.1f} {unit}</text>')
            parts.append(f'<text x="{x + 25}" y="238" font-size="11" text-anchor="middle">{name}</text>')
    parts.append('<text x="40" y="262" fill="#606060">dark: sampling, weights included</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="690" height="275" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="short")
    options = parser.parse_args(arguments)
    from burnish.benchmark.harness import tokenizer_tools
    from burnish.benchmark.workloads import prompts_for, workload

    work = replace(workload(options.workload), warmup=WARMUP, steps=STEPS)
    model, texts, encode, decode, render = tokenizer_tools()
    prompts = prompts_for(work, texts, encode, decode, render)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        job = Path(name) / "job.json"
        work.job(model, prompts, encode, peer=False, seed=0, threads=cores()).write(job)
        for number, (case, settings) in enumerate(CASES.items()):
            found[case] = measured(job, Path(name) / f"run-{number}", settings)
            print(case, {key: round(value, 2) for key, value in found[case].items()}, flush=True)
    if options.workload == "short":
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "ray.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (OUT / "ray.md").write_text(table(found), encoding="utf-8")
        (OUT / "ray.svg").write_text(drawing(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main(sys.argv[1:])
