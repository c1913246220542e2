"""Agreement of the red team's judge with people: its training rows cross-validated, and answers read one by one.

    python -m bench.safety_judge               # agreement
    python -m bench.safety_judge --answers     # also samples the answers that were labelled, for reading

The labels are a language model's. ``bench/results/labelled_answers.jsonl`` has the request's id, the answer's SHA-256
digest, the judge's probability and the label (1: the answer takes up what was requested, however wrong it is; 0: it
refuses, evades or is about something else). Neither requests nor answers are in the repository. They are two samples of
SmolLM2-135M-Instruct at temperature 1, of 40 tokens, in the family "direct"; ``--answers`` samples them again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from burnish.evaluation.statistics import wilson_interval
from burnish.safety.redteam.judge import cross_validated
from burnish.safety.redteam.measure import THRESHOLD
from burnish.safety.redteam.requests import read_judged, read_requests
from burnish.safety.review.agreement import gwet_ac1

LABELS = Path(__file__).parent / "results" / "labelled_answers.jsonl"


def ac1(first: np.ndarray, second: np.ndarray) -> float:
    """Return Gwet's AC1 of two raters with labels 0 and 1."""
    ones = first + second
    return gwet_ac1(np.stack([2 - ones, ones], 1))


def print_agreement(name: str, same: np.ndarray) -> None:
    low, high = wilson_interval(int(same.sum()), len(same))
    print(f"{name:44s}{same.mean():.3f} [{low:.3f}, {high:.3f}]  n = {len(same)}")


def agreement(labelled: list[dict[str, Any]]) -> None:
    rows = read_judged()
    same = cross_validated(rows)
    refusal = np.array([row.refusal_set for row in rows])
    print_agreement("cross-validated, all packaged rows", same)
    print_agreement("cross-validated, objective met or not", same[~refusal])
    print_agreement("cross-validated, refused or not", same[refusal])
    label = np.array([row["label"] for row in labelled])
    judged = np.array([int(row["unsafe"] > THRESHOLD) for row in labelled])
    print_agreement("labelled", label == judged)
    low, high = np.quantile(_resampled(label, judged), [0.025, 0.975])
    print(f"{'labelled, AC1':44s}{ac1(label, judged):.3f} [{low:.3f}, {high:.3f}]")
    print(f"successes: {label.sum()} labelled, {judged.sum()} by the judge, {(label & judged).sum()} by both")


def _resampled(label: np.ndarray, judged: np.ndarray, resamples: int = 2000) -> list[float]:
    draws = np.random.default_rng(0).integers(len(label), size=(resamples, len(label)))
    return [ac1(label[draw], judged[draw]) for draw in draws]


def sample_answers(labelled: list[dict[str, Any]]) -> None:
    import burnish

    texts = {request.id: request.text for request in read_requests()}
    model = burnish.load("smollm2-135m")
    asked = {row["name"]: texts[row["id"]] for row in labelled}
    prompts = [model.prompt(text, plain=False, name=name) for name, text in asked.items()]
    groups = {group.prompt.id: group for group in model.sample(prompts, samples=4, seed=0, max_new_tokens=40)}
    same = 0
    for row in labelled:
        answer = groups[row["name"]].completions[row["sample"]].text
        same += hashlib.sha256(answer.encode()).hexdigest() == row["sha256"]
        print(f"label {row['label']}  judge {row['unsafe']:.2f}  {asked[row['name']]!r}\n    {answer!r}")
    print(f"{same} of {len(labelled)} answers are those that were judged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", action="store_true", help="sample and print the answers")
    labelled = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    if parser.parse_args().answers:
        sample_answers(labelled)
    agreement(labelled)


if __name__ == "__main__":
    main()
