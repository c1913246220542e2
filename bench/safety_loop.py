"""The safety loop on SmolLM2-135M end to end, with a script in place of the people.

    python -m bench.safety_loop --out runs/loop

Each step is a command of docs/en/safety.md in a process of its own: a run of the recipe `loop`, a server of `burnish
review` whose pairs the script judges over HTTP, `burnish reward-model`, two further runs of `loop`, one with the learned
reward and one without, and a release once the script has judged what the filter flagged. The script prefers the text
with the lower school grade (the reward `readability`, whose grade nothing else rewards), approves what was flagged, and
rejects what was blocked. Steps that are done are not repeated, and a run that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from burnish.rewards.library.information import readability
from burnish.safety.filter.content_filter import ContentFilter

LINK = re.compile(r"(http://\S+?)/?#(\S+)")
FIRST_RUN = ("steps=10", "sampling.prompts_per_step=32", "sampling.samples_per_prompt=2", "evaluation.prompts=8")
"""Overrides of the run whose samples are judged: 320 pairs, one per prompt and step."""
METRIC = 'evaluation.metrics=[{use="readability", name="grade", form="grade", better="lower"}]'


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "burnish", *map(str, arguments)]


def settings(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def finish(verb: str, recipe: str, run: Path, *overrides: str) -> dict[str, Any]:
    """Train by a recipe, or resume the run, unless it is finished; return the evaluation."""
    if not (run / "evaluation.json").exists():
        begun = (run / "recipe.toml").exists()
        arguments = ["--resume", run] if begun else [recipe, "--run-dir", run, *settings(*overrides)]
        subprocess.run(command(verb, *arguments), check=True)
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def train(run: Path, *overrides: str) -> dict[str, Any]:
    return finish("train", "loop", run, *overrides, METRIC)


def grade(text: str) -> float:
    return readability(text, form="grade")


def judge(run: Path, pairs: int) -> Counter[str]:
    """Judge a run's queue over HTTP, in a server of `burnish review`; return the number of each choice."""
    content_filter = ContentFilter()
    choices: Counter[str] = Counter()
    arguments = command("review", run, "--pairs", pairs, "--reviewer", "script", "--port", 0)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address, token = next(found.groups() for line in server.stdout if (found := LINK.search(line)))
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            while item := client.get("/api/next").raise_for_status().json():
                if len(item["texts"]) == 2:
                    left, right = map(grade, item["texts"])
                    choice = "tie" if left == right else "left" if left < right else "right"
                else:
                    blocked = content_filter.check(item["texts"][0]).verdict == "block"
                    choice = "reject" if blocked else "approve"
                client.post("/api/judge", json={"item": item["id"], "choice": choice}).raise_for_status()
                choices[choice] += 1
        server.send_signal(signal.SIGINT)
    return choices


def release(run: Path) -> str:
    """Return what `burnish release` printed last: the paths that it wrote, or why it refuses."""
    done = subprocess.run(command("release", run), capture_output=True, text=True)
    return f"exit status {done.returncode}: {' '.join((done.stdout + done.stderr).split())}"


def print_metrics(name: str, evaluation: dict[str, Any]) -> None:
    for metric in sorted(evaluation):
        row = evaluation[metric]
        low, high = row["interval"]
        print(f"{name:10s}{metric:32s}{row['before']:.3f} -> {row['after']:.3f}, {row['difference']:+.3f} "
              f"[{low:+.3f}, {high:+.3f}], p = {row['p_value']:.3f}, n = {row['n']}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/loop"))
    parser.add_argument("--seed", type=int, default=0)
    out, seed = (options := parser.parse_args()).out, f"seed={options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    train(out / "one", *FIRST_RUN, seed)
    print("one: judged", dict(judge(out / "one", 320)))
    pairs, model = out / "pairs.jsonl", out / "judge"
    subprocess.run(command("review", out / "one", "--export", pairs), check=True)
    print_metrics("judge", finish("reward-model", "reward_model_loop", model, f"data.path={pairs}", seed))
    learned = ("reward.4.use=reward_model", f"reward.4.path={model}", "reward.4.normalise=group")
    print_metrics("two", train(out / "two", *learned, seed))
    print("two:", release(out / "two"))
    print("two: judged", dict(judge(out / "two", 20)))
    print("two:", release(out / "two"))
    print_metrics("control", train(out / "control", seed))


if __name__ == "__main__":
    main()
