"""Growth of a step's time and memory with the number of samples and the lengths of prompts and answers.

``python bench/growth.py`` writes bench/results/growth.md and growth.svg, with the straight line through the first two
points for comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from burnish.benchmark.harness import run_job, tokenizer_tools
from burnish.benchmark.workloads import Workload, prompts_for
from burnish.system.machine import cores, processor

OUT = Path(__file__).parent / "results"
BASE = Workload("growth", "grpo", "", prompts=4, samples=8, max_new_tokens=32, prompt_tokens=64, steps=1)
SERIES: dict[str, tuple[str, Sequence[int]]] = {
    "samples per prompt": ("samples", (4, 8, 16, 32)),
    "tokens per prompt": ("prompt_tokens", (64, 256, 512, 1024)),
    "tokens per answer": ("max_new_tokens", (16, 32, 64, 128)),
}


def measured() -> dict[str, list[tuple[int, float, float, float]]]:
    """Series -> (size, sampled tokens, seconds per step, peak GB) at each size."""
    folder, texts, encode, decode, render = tokenizer_tools()
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for name, (key, sizes) in SERIES.items():
        found[name] = []
        for size in sizes:
            work = replace(BASE, **{key: size})
            prompts = prompts_for(work, texts, encode, decode, render)
            answer = run_job("burnish", work.job(folder, prompts, encode, peer=False, seed=0, threads=cores()))
            found[name].append((size, answer["tokens"], answer["seconds"], answer["peak_bytes"] / 1e9))
            print(name, *found[name][-1], flush=True)
    return found


def line(first: tuple[float, float], second: tuple[float, float], at: float) -> float:
    """The straight line through two points."""
    return first[1] + (second[1] - first[1]) * (at - first[0]) / (second[0] - first[0])


def table(found: dict[str, list[tuple[int, float, float, float]]]) -> str:
    lines = [f"Processor {processor()}, {cores()} threads, SmolLM2-135M.", ""]
    lines += [
        "| series | size | sampled tokens | seconds per step | straight line | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, points in found.items():
        first, second = ((size, seconds) for size, _, seconds, _ in points[:2])
        for size, tokens, seconds, peak in points:
            straight = line(first, second, size)
            lines.append(f"| {name} | {size} | {tokens:.0f} | {seconds:.1f} | {straight:.1f} | {peak:.2f} |")
    return "\n".join(lines) + "\n"


def drawing(found: dict[str, list[tuple[int, float, float, float]]]) -> str:
    """One panel a series: seconds (dots, dashed the straight line) and memory (grey)."""
    parts = []
    for panel, (name, points) in enumerate(found.items()):
        left, widest = 50 + 290 * panel, points[-1][0]
        first, second = ((size, seconds) for size, _, seconds, _ in points[:2])
        highest = max(max(p[2] for p in points), line(first, second, widest))
        most = max(p[3] for p in points)

        def place(size: float, value: float, top: float, left: int = left, widest: int = widest) -> str:
            return f"{left + 220 * size / widest:.1f},{230 - 180 * value / top:.1f}"

        seconds = " ".join(place(size, value, highest) for size, _, value, _ in points)
        memory = " ".join(place(size, value, most) for size, _, _, value in points)
        straight = " ".join(place(size, line(first, second, size), highest) for size in (first[0], widest))
        parts.append(
            f'<text x="{left}" y="30" font-weight="bold">{name}</text>'
            f'<polyline points="{memory}" fill="none" stroke="#b8b8b8" stroke-width="2"/>'
            f'<polyline points="{straight}" fill="none" stroke="#2f6f9f" stroke-dasharray="4 4"/>'
            f'<polyline points="{seconds}" fill="none" stroke="#2f6f9f" stroke-width="2"/>'
            f'<path d="M{left} 50V230H{left + 225}" fill="none" stroke="black"/>'
            f'<text x="{left - 4}" y="56" text-anchor="end">{highest:.0f} s</text>'
            f'<text x="{left + 220}" y="246" text-anchor="end">{widest}</text>'
            f'<text x="{left + 2}" y="264" fill="#808080">grey: memory, up to {most:.1f} GB</text>'
        )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="275" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    points = measured()
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "growth.json").write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    (OUT / "growth.md").write_text(table(points), encoding="utf-8")
    (OUT / "growth.svg").write_text(drawing(points), encoding="utf-8")
