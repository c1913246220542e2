"""A run on a Ray cluster whose processes are killed at random, and a ledger of what it trained.

``python -m bench.ray_ledger --kills 20`` trains a tiny random model for one pass over its prompts with two samplers.
At random moments it kills a sampler (or with ``--learners 2`` a learner) with SIGKILL, and every fourth time the driver,
whose run is then resumed. The ledger counts each prompt's samples in samples.jsonl; the lines must also be those of a run
without kills, to the byte.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.tiny_models import write_tiny_model
from burnish.run.folder import read_lines

PROMPTS_PER_STEP, SAMPLES = 2, 4
WORDS = ("north", "south", "river", "winter", "paper", "garden", "window", "letter", "market", "silver")
RECIPE = """
name = "ledger"
steps = {steps}

[policy]
model = "{model}"

[task]
use = "data"
path = "{folder}/rows.jsonl"
held_out = "{folder}/held_out.jsonl"
prompt = "prompt"
chat = false

[sampling]
prompts_per_step = {prompts}
samples_per_prompt = {samples}
max_new_tokens = 24

[[reward]]
use = "repetition"

[evaluation]
resamples = 100

[checkpoint]
every = 5

[backend]
use = "ray"
samplers = 2
learners = {learners}
cpus = 1
"""


def write_rows(folder: Path, count: int) -> None:
    """Write prompts that are unlike each other: near-copies would share a side of the split."""
    chance = random.Random(1)
    for name, first, size in (("rows", 0, count), ("held_out", count, 4)):
        texts = [" ".join([f"{number}", *chance.choices(WORDS, k=6)]) for number in range(first, first + size)]
        lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "burnish", "train", *arguments, "--quiet"], stdout=out, stderr=out
        )


def workers(driver: int) -> list[tuple[str, psutil.Process]]:
    """Return the samplers and learners of a driver, and what they are."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            found += [(kind, process) for kind in ("sampler", "learner") if f"{kind.capitalize()}Process" in line]
        except psutil.Error:
            continue
    return found


def steps_done(run: Path) -> int:
    return sum(1 for _ in read_lines(run / "metrics.jsonl"))


def trained_under_kills(run: Path, recipe: Path, kills: int, steps: int, chance: random.Random) -> Counter[str]:
    """Train to the end with kills at random moments of random steps. Return how often each kind of process was killed."""
    killed: Counter[str] = Counter()
    log = run.with_suffix(".log")
    driver = start([str(recipe), "--run-dir", str(run)], log)
    moments = sorted(chance.sample(range(1, steps - 1), kills))
    while driver.poll() is None:
        due = sum(killed.values())
        if due == kills or steps_done(run) < moments[due]:
            time.sleep(0.005)
            continue
        time.sleep(chance.uniform(0, 0.3))
        victims = [("driver", psutil.Process(driver.pid))] if due % 4 == 3 else workers(driver.pid)
        if not victims:
            continue
        kind, victim = chance.choice(victims)
        victim.send_signal(signal.SIGKILL)
        killed[kind] += 1
        if kind == "driver":
            driver.wait()
            driver = start(["--resume", str(run)], log)
    if driver.returncode:
        raise SystemExit(log.read_text(encoding="utf-8"))
    return killed


def ledger(run: Path) -> Counter[tuple[str, int]]:
    """Return how many samples of each prompt were trained in each step."""
    return Counter((row["prompt_id"], row["step"]) for row in read_lines(run / "samples.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learners", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, options.steps * PROMPTS_PER_STEP)
        recipe = folder / "ledger.toml"
        model = write_tiny_model("llama", folder)
        text = RECIPE.format(
            steps=options.steps, model=model, folder=folder, prompts=PROMPTS_PER_STEP, samples=SAMPLES,
            learners=options.learners,
        )  # fmt: skip
        recipe.write_text(text, encoding="utf-8")
        whole, killed = folder / "whole", folder / "killed"
        begin = time.monotonic()
        if start([str(recipe), "--run-dir", str(whole)], folder / "whole.log").wait():
            raise SystemExit((folder / "whole.log").read_text(encoding="utf-8"))
        quiet_seconds = time.monotonic() - begin
        counts = trained_under_kills(killed, recipe, options.kills, options.steps, random.Random(options.seed))
        trained = ledger(killed)
        prompts = Counter(prompt for prompt, _ in trained)
        events = Counter(row["kind"] for row in read_lines(killed / "warnings.jsonl"))
        print(f"killed: {dict(counts)}; warnings.jsonl: {dict(events)}")
        print(f"seconds: {quiet_seconds:.0f} without kills, {time.monotonic() - begin - quiet_seconds:.0f} with them")
        print(f"prompts trained: {len(prompts)} of {options.steps * PROMPTS_PER_STEP}, in {options.steps} steps")
        print(f"trained in one step each: {set(prompts.values()) == {1}}; samples of each: {set(trained.values())}")
        same = (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
        print(f"samples.jsonl equals that of a run without kills: {same}")
        raise SystemExit(not (same and set(prompts.values()) == {1} and set(trained.values()) == {SAMPLES}))


if __name__ == "__main__":
    main()
