"""Compares the speed of two checkouts step by step: ``python -m bench.side_by_side OTHER_CHECKOUT short lora``.

Machines drift by a third within minutes, which hides a difference of a few percent between two runs. Here two processes
stay loaded, one for each checkout, and take turns: only one of them computes at a time. Each pair of steps gives a
ratio; the table has their median and range. The other checkout needs the same packages and ``burnish.benchmark``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
CHILD = "--child"


class Runner:
    """A process that has loaded one checkout's benchmark and waits for its turn."""

    def __init__(self, checkout: Path, workload: str, steps: int, threads: int) -> None:
        reading, writing = os.pipe()
        self._results = os.fdopen(reading)
        command = [sys.executable, __file__, CHILD, workload, str(steps), str(threads), str(writing)]
        settings = {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, cwd=checkout, env=os.environ | settings, pass_fds=[writing], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(writing)
        self.read()  # loaded

    def read(self) -> Any:
        line = self._results.readline()
        if not line:
            raise SystemExit(f"a runner failed with status {self._process.wait()}")
        return json.loads(line)

    def step(self) -> dict[str, float]:
        """Let the process make one step; return its seconds, those of sampling, its tokens and the peak memory, GB."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        result: dict[str, float] = self.read()
        return result

    def close(self) -> None:
        self._process.communicate()


def child(workload: str, steps: str, threads: str, channel: str) -> None:
    """Run the benchmark of the checkout on PYTHONPATH, one step per line of standard input."""
    import burnish.benchmark.harness as harness
    import burnish.benchmark.runner as runner

    results = os.fdopen(int(channel), "w")

    def send(value: Any) -> None:
        print(json.dumps(value), file=results, flush=True)

    work = harness.workload(workload)  # type: ignore[attr-defined]
    make: Any = getattr(harness, "_jobs", None) or harness._orders  # type: ignore[attr-defined]
    job = dataclasses.replace(make([work], int(threads))[work.name, False], warmup=0, steps=int(steps))

    def in_turn(step: Any) -> Any:
        def wait(*args: Any) -> Any:
            sys.stdin.readline()
            result = step(*args)
            one = result[0] if isinstance(result, tuple) else result
            peak = built.peak_memory() / 1e9
            send({"seconds": one.seconds, "sampling": one.sampling_seconds, "tokens": one.tokens, "peak": peak})
            return result

        return wait

    built: Any = runner
    for name in ("grpo_step", "sampling_step"):
        setattr(built, name, in_turn(getattr(built, name)))
    refuse = built.refuse_other_prompts

    def loaded(*args: Any) -> None:
        refuse(*args)
        send("loaded")

    built.refuse_other_prompts = loaded
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        job.write(path)
        sys.argv = ["runner", str(path)]
        runner.main()


def compare(other: Path, workload: str, pairs: int, threads: int) -> str:
    """Return a table row: the medians of both checkouts, and the median and the range of the pairs' ratios."""
    checkouts = {"this": ROOT, "other": other}
    runners = {name: Runner(path, workload, pairs + 1, threads) for name, path in checkouts.items()}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for number in range(pairs + 1):  # the first is a warm-up
        for name in sorted(runners, reverse=number % 2 == 1):
            steps[name].append(runners[name].step())
            print(f"{workload} {name} step {number}: {steps[name][-1]}", file=sys.stderr)
    for runner in runners.values():
        runner.close()
    measured = {name: rows[1:] for name, rows in steps.items()}
    columns = [workload]
    for part in ("seconds", "sampling"):
        ours, theirs = ([row[part] for row in measured[name]] for name in ("this", "other"))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        columns += [
            f"{median(ours):.1f}", f"{median(theirs):.1f}",
            f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        ]  # fmt: skip
    peaks = [f"{steps[name][-1]['peak']:.1f}" for name in ("this", "other")]
    return "| " + " | ".join([*columns, *peaks]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of another commit")
    parser.add_argument("workloads", nargs="+", help="short, ragged, long, lora, sample32, sample64")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of steps, after a warm-up of one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    rows = [compare(chosen.other.resolve(), name, chosen.pairs, chosen.threads) for name in chosen.workloads]
    parts = [f"{part}: this, s | other, s | times as fast" for part in ("step", "sampling")]
    print("| workload | " + " | ".join([*parts, "memory, GB: this | other"]) + " |")
    print("|" + "---|" * 9)
    print("\n".join(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
    else:
        main()
