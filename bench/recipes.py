"""What runs of one recipe measured, a column a run, for the recipe's comment; and what they wrote, for
docs/en/samples.md.

python bench/recipes.py runs/code-0 runs/code-1 runs/code-2
python bench/recipes.py --samples runs/code-0 runs/dialogue-0 ... > docs/en/samples.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from burnish.reports.page.samples import pairs
from burnish.reports.run_data import RunData, read_run
from burnish.reports.wording import duration, gigabytes, spent

PROMPTS = 3
LONGEST = {"prompt": 160, "answer": 320}


def measured(value: float | None, digits: int, *, signed: bool = False) -> str:
    return "?" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def table(runs: list[RunData]) -> str:
    """The evaluation of each run: before -> after, difference [95% interval], p."""
    lines = []
    for name in dict.fromkeys(name for run in runs for name in run.evaluation):
        cells = []
        for run in runs:
            row = run.evaluation.get(name, {})
            before, after, interval = row.get("before"), row.get("after"), row.get("interval") or (None, None)
            largest = max((abs(number) for number in (before, after) if number is not None), default=0.0)
            digits = 3 if largest < 2 else 1
            low, high = (measured(end, digits, signed=True) for end in interval)
            cells.append(
                f"{measured(before, digits)} -> {measured(after, digits)}, "
                f"{measured(row.get('difference'), digits, signed=True)} [{low}, {high}] p {row.get('p_value')}"
            )
        lines.append(f"{name:28}" + "  ".join(f"{cell:56}" for cell in cells).rstrip())
    costs = []
    for run in runs:
        seconds, memory = spent(run.rows)
        costs.append(f"{duration(seconds)} for {run.steps_done} steps, {gigabytes(memory)}, alarms {len(run.warnings)}")
    return "\n".join([*lines, f"{'cost':28}" + "  ".join(f"{cost:56}" for cost in costs).rstrip()])


def short(text: str, most: int, *, end: bool = False) -> str:
    """The text in one line, its end or its beginning where it is longer than that, fit for a table of Markdown."""
    line = " ".join(text.split())
    if len(line) > most:
        line = f"… {line[-most:]}" if end else f"{line[:most]} …"
    for mark in "\\`*_|<>[]":
        line = line.replace(mark, f"\\{mark}")
    return line or "*(nothing)*"


def samples(folder: Path) -> str:
    """The first held-out prompts of a run, in the order in which they are measured, with the first answer to each."""
    run = read_run(folder)
    found = {}
    for pair in pairs(run.before, run.after):
        found.setdefault(pair.prompt, pair)
    lines = [f"## {run.name}", "", "| the prompt's end | before | after |", "|---|---|---|"]
    for pair in list(found.values())[:PROMPTS]:
        answers = (short(each.text, LONGEST["answer"]) for each in (pair.before, pair.after))
        lines.append(f"| {short(pair.prompt, LONGEST['prompt'], end=True)} | {' | '.join(answers)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    asked = sys.argv[1:]
    folders = [Path(each) for each in asked if not each.startswith("--")]
    if not folders:
        sys.exit("name run folders: python bench/recipes.py [--samples] RUN ...")
    if "--samples" in asked:
        print("\n".join(samples(folder) for folder in folders), end="")
    else:
        print(table([read_run(folder) for folder in folders]))


if __name__ == "__main__":
    main()
