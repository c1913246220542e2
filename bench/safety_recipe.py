"""The safety recipe end to end, for several seeds: find attacks, warm start, train, measure against the start.

    python -m bench.safety_recipe --out runs/safety --seeds 0 1 2
    python -m bench.safety_recipe --out runs/safety --seeds 0 --rounds 2 --attacker

Per seed, `burnish harden` writes its rounds below ``--out``, and the headlines of each round's model are measured; steps
that are done are not repeated. A table per round is printed, as in the recipe's comment. With ``--attacker``, the recipe
`attacker` is trained against the model of the last round, and the success of what it words is printed beside that of
the same model untrained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.safety.redteam.families import HELD_OUT, TRAINED

BASE = "smollm2-135m"
FAMILIES_OF_ALL = [("families", "trained"), ("families", "held out"), ("all", "all"), ("over-refusal", "look-alikes")]


def burnish(*arguments: object) -> str:
    command = [sys.executable, "-m", "burnish", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def written(path: Path, *arguments: object) -> Any:
    """Return what a command printed as JSON, which the file keeps."""
    if not path.exists():
        path.write_text(burnish(*arguments, "--json"), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def run_seed(out: Path, seed: int, each: int, rounds: int) -> None:
    burnish("harden", BASE, "--rounds", rounds, "--run-dir", out, "--each", each, "--seed", seed)
    for number in range(1, rounds + 1):
        # The task metric against the untrained model, on all held-out articles, as headlines.toml measures it.
        folder = out / f"round-{number}"
        written(folder / "headlines.json", "evaluate", folder / "trained", "--against", BASE, "--recipe", "headlines")


def cell(row: Mapping[str, Any], before: float, after: float) -> str:
    low, high = row["interval"]
    return f"{before:.3f} -> {after:.3f}, {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def print_table(folders: Sequence[Path]) -> None:
    """Print a line per family and kind of measurement, with a cell per folder of a round."""
    results = [json.loads((folder / "redteam.json").read_text(encoding="utf-8"))["rows"] for folder in folders]
    for kind, name in [*(("family", name) for name in (*TRAINED, *HELD_OUT)), *FAMILIES_OF_ALL]:
        rows = [next(row for row in rows if (row["kind"], row["name"]) == (kind, name)) for rows in results]
        cells = [cell(row, row["before"]["share"], row["share"]) for row in rows]
        print_line(name + (" (held out)" if name in HELD_OUT else ""), cells)
    files = [json.loads((folder / "headlines.json").read_text(encoding="utf-8")) for folder in folders]
    overlaps = [file["reward/rouge_l"] for file in files]
    print_line("ROUGE-L of headlines", [cell(row, row["before"], row["after"]) for row in overlaps])


def print_line(name: str, cells: Sequence[str]) -> None:
    print(f"#   {name:24s}{'  '.join(f'{one:42s}' for one in cells).rstrip()}")


def print_attacker(out: Path, target: Path, each: int, seed: int) -> None:
    """Train an attacker against a model, and print its success, that of the same model untrained, and of families."""
    attacker = out / "attacker"
    if not (attacker / "evaluation.json").exists():
        overrides = ["--set", f"reward.0.model={target}", "--set", f"seed={seed}"]
        burnish("train", "attacker", *overrides, "--run-dir", attacker)
    options = ["--side", "held_out", "--each", each, "--seed", seed]
    for name, run in (("trained", attacker), ("untrained", Path(BASE))):
        result = written(out / f"attacker-{name}.json", "redteam", target, "--attacker", run, *options)
        rows = {row["name"]: row for row in result["rows"] if row["kind"] in ("family", "learned")}
        for row in ([] if name == "trained" else [rows[one] for one in TRAINED]) + [rows["learned"]]:
            kept = f", keeps {row['kept']:.3f}" if row["kind"] == "learned" else ""
            share = f"{row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            print(f"#   {name + ' attacker' if kept else row['name']:24s}{share}{kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/safety"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=40, help="held-out requests per family")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--attacker", action="store_true", help="train an attacker against each last model, too")
    options = parser.parse_args()
    folders = [options.out / f"seed{seed}" for seed in options.seeds]
    for folder, seed in zip(folders, options.seeds, strict=True):
        run_seed(folder, seed, options.each, options.rounds)
    for number in range(1, options.rounds + 1):
        print(f"# round {number}")
        print_table([folder / f"round-{number}" for folder in folders])
    for folder, seed in zip(folders, options.seeds, strict=True) if options.attacker else ():
        print(f"# attackers of seed {seed}")
        print_attacker(folder, folder / f"round-{options.rounds}" / "trained", options.each, seed)


if __name__ == "__main__":
    main()
