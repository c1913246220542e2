"""All algorithms side by side on one real task, one budget, several seeds: ``python bench/algorithms.py`` writes
bench/results/algorithms.json and algorithms.md. An hour on two cores.

The task is the recipe ``lstm``: a character LSTM, pretrained once on news, then reinforced for 60 steps of 8 prompts x
8 samples with the recipe's reward, from the same weights, at the same learning rate, with each seed and algorithm. What
counts is the held-out reward after training minus before it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from burnish.algorithms.presets import PRESETS

ROOT = Path(__file__).parents[1]
OUT = ROOT / "bench" / "results"
CONTROL = "shuffled rewards"


def recipe(algorithm: str, seed: int, steps: int, weights: Path | None) -> dict[str, Any]:
    """Return the recipe of one run; without weights, that of the pretraining."""
    made = tomllib.loads((ROOT / "recipes" / "lstm.toml").read_text(encoding="utf-8"))
    made |= {"steps": steps, "seed": seed}
    made["evaluation"] = {"samples_per_prompt": 4}
    if weights is not None:
        made["policy"] = {"use": "lstm", "weights": str(weights)}
    if algorithm == CONTROL:
        made["reward"] = [part | {"weight": 0.0} for part in made["reward"]]
        made["reward"] += [{"use": "bench.algorithms:noise", "name": "noise", "weight": 1.0}]
        algorithm = "rloo"
    # The KL term is not part of the comparison.
    made["algorithm"] = {"use": algorithm}
    return made


def noise(completion: Any) -> float:
    """Return a number that depends only on a hash of the completion's text: a reward without information."""
    import hashlib

    return hashlib.sha256(completion.text.encode()).digest()[0] / 255


def run(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train in a separate process, and return the held-out measurement."""
    if not (folder / "evaluation.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        code = f"import burnish, json, sys; burnish.train(json.load(sys.stdin), run_dir={str(folder)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(made), text=True, cwd=ROOT, capture_output=True
        )
        if done.returncode != 0:
            sys.exit(f"{folder.name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half the width of its 95% interval by Student's t."""
    count = len(values)
    if count < 2:
        return statistics.mean(values), math.nan
    return statistics.mean(values), float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "algorithms")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("algorithms", nargs="*", default=[*PRESETS, CONTROL])
    chosen = parser.parse_args()
    chosen.runs.mkdir(parents=True, exist_ok=True)
    run(recipe("rloo", 0, 1, None), chosen.runs / "pretraining")
    weights = chosen.runs / "pretraining" / "start"
    jobs = [(name, seed) for seed in range(chosen.seeds) for name in chosen.algorithms]
    with ThreadPoolExecutor(chosen.workers) as pool:
        done = pool.map(
            lambda job: run(recipe(*job, chosen.steps, weights), chosen.runs / f"{job[0].replace(' ', '-')}-{job[1]}"),
            jobs,
        )
        found: dict[str, list[dict[str, Any]]] = {}
        for (name, seed), answer in zip(jobs, done, strict=True):
            found.setdefault(name, []).append(answer)
            print(name, seed, flush=True)
            write(found, chosen.steps)


def gain(answer: Mapping[str, Any]) -> float:
    """Return the gain of the recipe's own reward on held-out prompts, whatever was trained."""
    weights = {part["use"]: part["weight"] for part in recipe("rloo", 0, 1, None)["reward"]}
    return sum(weight * float(answer[f"reward/{use}"]["difference"]) for use, weight in weights.items())


def table(found: Mapping[str, Sequence[Mapping[str, Any]]], steps: int) -> str:
    """Return a table with one row per algorithm, the largest gain first."""
    lines = [
        f"Gain of held-out reward in {steps} steps from one pretrained model: mean over seeds with a 95% interval "
        "(Student's t), the least and the most.",
        "",
        "| algorithm | seeds | gain | least, most | distinct-2 | true-text perplexity |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for name, answers in found.items():
        gains = [gain(answer) for answer in answers]
        mean, half = interval(gains)
        others = [statistics.mean(a[key]["difference"] for a in answers) for key in ("distinct_2", "truth_perplexity")]
        rows.append(
            (mean, f"| {name} | {len(gains)} | {mean:+.4f} ± {half:.4f} | {min(gains):+.4f}, {max(gains):+.4f} | "
             f"{others[0]:+.3f} | {others[1]:+.2f} |")
        )  # fmt: skip
    return "\n".join([*lines, *(row for _, row in sorted(rows, reverse=True))]) + "\n"


def kept(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data behind the table: each metric before and after, and the difference."""
    return {key: {name: row[name] for name in ("before", "after", "difference")} for key, row in answer.items()}


def write(found: Mapping[str, Sequence[Mapping[str, Any]]], steps: int) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps([kept(one) for one in answers])}" for name, answers in found.items()]
    (OUT / "algorithms.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    (OUT / "algorithms.md").write_text(table(found, steps), encoding="utf-8")


if __name__ == "__main__":
    main()
