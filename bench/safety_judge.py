"""Agreement of the red team's judge with people: its training rows cross-validated, and answers judged by hand.

    python -m bench.safety_judge                          # agreement, from the packaged rows and the labels by hand
    python -m bench.safety_judge --answer MODEL --each 10 --out answers.jsonl   # answers to judge by hand

The labels are in ``bench/results/judged_by_hand.jsonl``: attack, model, seed, the answer's SHA-256 digest, the judge's
probability at the time, and the label of burnish's authors (1: the answer does what was requested). Neither requests
nor answers are in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

from burnish.evaluation.statistics import wilson_interval
from burnish.safety.redteam.families import FAMILIES
from burnish.safety.redteam.judge import answer_judge, cross_validated
from burnish.safety.redteam.measure import THRESHOLD, plan_attacks, run_attacks
from burnish.safety.redteam.requests import read_judged
from burnish.safety.redteam.task import requests_on

LABELS = Path("bench/results/judged_by_hand.jsonl")


def gwet_ac1(first: np.ndarray, second: np.ndarray) -> float:
    """Return Gwet's AC1 of two raters with labels 0 and 1 (Gwet 2008)."""
    chance = 2 * (mean := float((first.mean() + second.mean()) / 2)) * (1 - mean)
    return (float((first == second).mean()) - chance) / (1 - chance)


def print_agreement(name: str, same: np.ndarray) -> None:
    low, high = wilson_interval(int(same.sum()), len(same))
    print(f"{name:48s}{same.mean():.3f} [{low:.3f}, {high:.3f}]  n = {len(same)}")


def agreement() -> None:
    rows = read_judged()
    same = cross_validated(rows)
    refusal = np.array([row.refusal_set for row in rows])
    print_agreement("cross-validated, all packaged rows", same)
    print_agreement("cross-validated, objective met or not", same[~refusal])
    print_agreement("cross-validated, refused or not", same[refusal])
    if not LABELS.exists():
        return
    labelled = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    label = np.array([row["label"] for row in labelled])
    judged = np.array([int(row["unsafe"] > THRESHOLD) for row in labelled])
    print_agreement("by hand, all", label == judged)
    for model in dict.fromkeys(row["model"] for row in labelled):
        chosen = np.array([row["model"] == model for row in labelled])
        print_agreement(f"by hand, answers of {model}", (label == judged)[chosen])
    print(
        f"by hand: Gwet's AC1 {gwet_ac1(label, judged):.3f}; unsafe by hand {label.sum()}, by the judge {judged.sum()}"
    )
    print(f"unsafe by the judge alone {(judged > label).sum()}, by hand alone {(label > judged).sum()}")


def answer(model_name: str, each: int, seed: int, out: Path) -> None:
    import burnish

    model = burnish.load(model_name)

    def ask(prompts: list[tuple[str, str]]) -> list[str]:
        made = [model.prompt(text, plain=False, name=name) for name, text in prompts]
        groups = model.sample(made, seed=seed, max_new_tokens=48, temperature=0.7)
        return [group.completions[0].text for group in groups]

    attacks = plan_attacks(requests_on("held_out"), list(FAMILIES), each, seed)
    with out.open("w", encoding="utf-8") as file:
        for trial in run_attacks(attacks, ask, answer_judge()):  # type: ignore[arg-type]
            digest = hashlib.sha256(trial.answer.encode()).hexdigest()
            row = {"id": trial.attack.id, "model": model_name, "seed": seed, "sha256": digest, "unsafe": trial.unsafe}
            row |= {"request": trial.attack.request.text, "answer": trial.answer}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer", metavar="MODEL")
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("answers.jsonl"))
    options = parser.parse_args()
    if options.answer:
        answer(options.answer, options.each, options.seed, options.out)
    else:
        agreement()


if __name__ == "__main__":
    main()
