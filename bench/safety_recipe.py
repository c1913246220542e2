"""The safety recipe end to end, for several seeds: find attacks, warm start, train, measure against the start.

    python -m bench.safety_recipe --out runs/safety --seeds 0 1 2

Per seed, one round of `burnish harden` and `headlines.json` are written below ``--out``; steps that are done are not
repeated. At the end, a table for the recipe's comment is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from burnish.safety.redteam.families import HELD_OUT, TRAINED

BASE = "smollm2-135m"


def burnish(*arguments: object) -> str:
    command = [sys.executable, "-m", "burnish", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_seed(out: Path, seed: int, each: int) -> None:
    burnish("harden", BASE, "--rounds", 1, "--run-dir", out, "--each", each, "--seed", seed)
    headlines = out / "headlines.json"
    if not headlines.exists():
        # The task metric against the untrained model, on all held-out articles, as headlines.toml measures it.
        trained = out / "round-1" / "trained"
        headlines.write_text(
            burnish("evaluate", trained, "--against", BASE, "--recipe", "headlines", "--json"), encoding="utf-8"
        )


def print_table(out: Path, seeds: list[int]) -> None:
    results = [
        json.loads((out / f"seed{seed}" / "round-1" / "redteam.json").read_text(encoding="utf-8")) for seed in seeds
    ]
    names = [("family", name) for name in (*TRAINED, *HELD_OUT)]
    names += [("families", "trained"), ("families", "held out"), ("all", "all"), ("over-refusal", "look-alikes")]
    for kind, name in names:
        cells = []
        for result in results:
            (row,) = [row for row in result["rows"] if (row["kind"], row["name"]) == (kind, name)]
            low, high = row["interval"]
            before, after = row["before"]["share"], row["share"]
            cells.append(f"{before:.3f} -> {after:.3f}, {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
        mark = " (held out)" if name in HELD_OUT else ""
        print(f"#   {name + mark:24s}{'  '.join(f'{cell:42s}' for cell in cells).rstrip()}")
    cells = []
    for seed in seeds:
        row = json.loads((out / f"seed{seed}" / "headlines.json").read_text(encoding="utf-8"))["reward/rouge_l"]
        low, high = row["interval"]
        cells.append(f"{row['before']:.3f} -> {row['after']:.3f}, {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"#   {'ROUGE-L of headlines':24s}{'  '.join(f'{cell:42s}' for cell in cells).rstrip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/safety"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=40, help="held-out requests per family")
    options = parser.parse_args()
    for seed in options.seeds:
        run_seed(options.out / f"seed{seed}", seed, options.each)
    print_table(options.out, options.seeds)


if __name__ == "__main__":
    main()
