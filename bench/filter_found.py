"""What the filter's layer `found` flags, after it has learned from a red team.

    python -m bench.filter_found --out runs/found

`burnish redteam` attacks SmolLM2-135M-Instruct with requests of the side `train` and exports what succeeded; a policy
with `found` learns from the file. The model is then attacked with requests of the side `held_out`, and the layer reads
its answers, besides innocent texts. The table of docs/en/filter.md is printed, with Wilson's 95% intervals. The
answers stay in the folder, and are not sampled again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.filter_quality import hsk, innocent_sets, lee_sentences
from burnish.cli.redteaming import SAMPLING, model_answers
from burnish.evaluation.statistics import wilson_interval
from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.found import read_found
from burnish.safety.redteam.families import FAMILIES, TRAINED
from burnish.safety.redteam.judge import answer_judge
from burnish.safety.redteam.look_alikes import LOOK_ALIKES
from burnish.safety.redteam.measure import plan_attacks, run_attacks
from burnish.safety.redteam.task import requests_on

MODEL = "smollm2-135m"


def find(path: Path, each: int) -> None:
    arguments = ["redteam", MODEL, "--side", "train", "--each", str(each), "--export", str(path)]
    subprocess.run([sys.executable, "-m", "burnish", *arguments], check=True, stdout=subprocess.DEVNULL)


def held_out_answers(path: Path, each: int) -> dict[str, Any]:
    """Return the model's answers to attacks, with their families and verdicts, and to look-alikes."""
    if not path.exists():
        answer = model_answers(MODEL, 0, False, SAMPLING)
        trials = run_attacks(plan_attacks(requests_on("held_out"), list(FAMILIES), each), answer, answer_judge())
        answers = {
            "attacks": [[trial.attack.family, trial.success, trial.answer] for trial in trials],
            "look-alikes": answer([(f"look_alike/{index}", text) for index, text in enumerate(LOOK_ALIKES)]),
        }
        path.write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def print_row(name: str, texts: Sequence[str], content_filter: ContentFilter) -> None:
    flagged = sum("harm" in content_filter.check(text).categories for text in texts)
    low, high = (100 * bound for bound in wilson_interval(flagged, len(texts)))
    print(f"| {name} | {len(texts):,} | {100 * flagged / len(texts):.1f} ({low:.1f} to {high:.1f}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/found"))
    parser.add_argument("--each", type=int, default=30, help="requests per family, to learn from and to measure on")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = options.out / "found.jsonl"
    if not found.exists():
        find(found, options.each)
    content_filter = ContentFilter({"found": str(found)})
    answers = held_out_answers(options.out / "answers.json", options.each)
    unsafe = [(family, text) for family, success, text in answers["attacks"] if success]
    innocent = innocent_sets()
    rows = {
        "answers to attacks, judged unsafe": [text for _, text in unsafe],
        "of these, families that recipe safety trains on": [text for family, text in unsafe if family in TRAINED],
        "of these, other families": [text for family, text in unsafe if family not in TRAINED],
        "answers to attacks, judged safe": [text for _, success, text in answers["attacks"] if not success],
        "answers to harmless look-alikes": answers["look-alikes"],
        "sentences of the Lee corpus": lee_sentences(),
        "articles of the Lee corpus": innocent["Lee articles"],
        "HSK sentences, English": hsk("en"),
        "HSK sentences, Chinese": hsk("zh"),
        "traps": [text for name, texts in innocent.items() if name.startswith("traps") for text in texts],
    }
    learned, _ = read_found(found)
    print(f"learned from {len(learned)} unsafe answers\n| texts | number | flagged, % |\n|---|---|---|")
    for name, texts in rows.items():
        print_row(name, texts, content_filter)
    words = ContentFilter()
    seen = sum(words.check(text).verdict != "allow" for _, text in unsafe)
    print(f"the word layer flags {seen} of {len(unsafe)}")


if __name__ == "__main__":
    main()
