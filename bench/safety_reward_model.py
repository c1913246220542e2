"""Whether attacks that were found help a reward model: trained on pairs of replies with and without them.

    python -m bench.safety_reward_model found.jsonl --out runs/reward_model_safety

`found.jsonl` is of `burnish redteam MODEL --side train --export found.jsonl`. Three of ten requests and look-alikes are
held out with all their wordings. Both reward models learn from the same pairs of true and false replies of
conversations, one of them also from what was found. Accuracy on the pairs that were held out is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.data.splits import digest, is_held_out
from burnish.evaluation.statistics import paired_bootstrap, wilson_interval
from burnish.policies.reward_model import load_reward_model
from burnish.safety.redteam.look_alikes import TRAINING_LOOK_ALIKES
from burnish.tasks.dialogue import Dialogue
from burnish.types import Completion, Message, Prompt

HELD_OUT_PERCENT = 30
MODELS = ("without", "with")


def unit(row: Mapping[str, Any]) -> str:
    """Return the request of an attack, or the look-alike of a harmless prompt, without its wording."""
    if row["family"] != "harmless":
        return str(row["id"]).partition("/")[2]
    return next(text for text in TRAINING_LOOK_ALIKES if text in row["prompt"])


def reply_pairs(count: int) -> list[dict[str, str]]:
    """Return conversations with the true reply, preferred to the reply to another one."""
    prompts = Dialogue(history=0).train()[:count]
    replies = [prompt.reference or "" for prompt in prompts]
    others = [*replies[count // 2 :], *replies[: count // 2]]
    rows = zip(prompts, replies, others, strict=True)
    return [{"prompt": one.text, "chosen": own, "rejected": other} for one, own, other in rows if own != other]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    kept = ({key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")


def right(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return whether the reward model prefers the chosen answer of each row."""
    model = load_reward_model(str(folder))
    completions = [
        Completion(
            Prompt(str(index), row["prompt"], messages=(Message("user", row["prompt"]),)), (), (), row[side], (), "stop"
        )
        for index, row in enumerate(rows)
        for side in ("chosen", "rejected")
    ]
    scores = np.array(model.score_texts(completions)).reshape(-1, 2)
    return list(scores[:, 0] > scores[:, 1])


def print_accuracy(name: str, rows: Sequence[Mapping[str, Any]], correct: Mapping[str, Sequence[bool]]) -> None:
    """Print both accuracies with intervals over requests, and their paired difference."""
    units = sorted({unit(row) for row in rows})
    sums = {
        model: np.array(
            [[sum(ok for row, ok in zip(rows, values, strict=True) if unit(row) == one), 0] for one in units],
            dtype=float,
        )
        for model, values in correct.items()
    }
    counts = np.array([sum(unit(row) == one for row in rows) for one in units])
    for model, table in sums.items():
        table[:, 1] = counts
        share = table[:, 0].sum() / counts.sum()
        low, high = wilson_interval(share * len(units), len(units))
        print(f"{name:10s}{model:10s}{share:.3f} [{low:.3f}, {high:.3f}]")
    compared = paired_bootstrap(sums["without"], sums["with"])
    low, high = compared.interval
    print(f"{name:10s}{len(rows)} pairs of {len(units)}: {compared.difference:+.3f} [{low:+.3f}, {high:+.3f}], "
          f"p = {compared.p_value:.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/reward_model_safety"))
    parser.add_argument("--replies", type=int, default=160, help="pairs of replies")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in options.found.read_text(encoding="utf-8").splitlines()]
    held_out = [is_held_out(digest(unit(row)), HELD_OUT_PERCENT) for row in found]
    replies = reply_pairs(options.replies)
    for name in MODELS:
        data, run = options.out / f"{name}.jsonl", options.out / name
        own = [row for row, held in zip(found, held_out, strict=True) if not held] if name == "with" else []
        write_rows(data, [*replies, *own])
        if not (run / "evaluation.json").exists():
            settings = [f"data.path={data}", f"steps={options.steps}", f"seed={options.seed}"]
            command = [sys.executable, "-m", "burnish", "reward-model", "reward_model_safety", "--run-dir", str(run)]
            subprocess.run([*command, *(word for one in settings for word in ("--set", one))], check=True)
    tested = [row for row, held in zip(found, held_out, strict=True) if held]
    correct = {name: right(options.out / name, tested) for name in MODELS}
    for kind in ("attacks", "harmless"):
        indices = [index for index, row in enumerate(tested) if (row["family"] == "harmless") == (kind == "harmless")]
        rows = [tested[index] for index in indices]
        print_accuracy(kind, rows, {name: [values[index] for index in indices] for name, values in correct.items()})


if __name__ == "__main__":
    main()
