"""Runs that are killed with SIGKILL at random moments and resumed, compared with the run that was never killed.

``python -m bench.kills --kills 50`` trains the toy recipe with a checkpoint after every step. Each kill comes at a random
moment between the first file of a run folder and the last. The resumed run prints the step that it took up, and its
weights, optimizer, samples, metrics without timings and evaluation must be those of the run never killed, to the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import burnish.api
from burnish.reports.terminal.progress import make_observer
from burnish.run.folder import comparable, find_checkpoints, read_lines
from burnish.run.proof import examine

FORKS = multiprocessing.get_context("fork")
"""Children that need not import torch again."""
SETTINGS = (
    "checkpoint.every=1", "checkpoint.keep=3", "evaluation.every=5", "checkpoint.keep_best=held_out/reward",
    "sampling.prompts_per_step=2", "sampling.samples_per_prompt=4", "evaluation.resamples=100",
)  # fmt: skip


def child(log: Path, arguments: dict[str, Any]) -> Any:
    """Start training in a process of its own, which writes its messages to a file."""

    def work() -> None:
        with log.open("a", encoding="utf-8") as out, redirect_stderr(out):
            burnish.api.train(**arguments, observer=make_observer())

    process = FORKS.Process(target=work)
    process.start()
    return process


def bits(run: Path) -> dict[str, Any]:
    """Everything of a finished run that has to be the same."""
    files = [run / "samples.jsonl", run / "held_out.jsonl", run / "evaluation.json", *(run / "evaluation").iterdir()]
    newest = find_checkpoints(run)[-1].folder
    files += [path for path in newest.rglob("*") if path.is_file()]
    digests = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    links = {name: os.readlink(run / name) for name in ("model", "model_best")}
    return {"metrics": [comparable(row) for row in read_lines(run / "metrics.jsonl")], **links, **digests}


def killed_once(run: Path, recipe: dict[str, Any], moment: float) -> str:
    """Kill a run so many seconds after its folder appeared. Returns what was on the disk, "" if the run had ended."""
    process = child(run.with_suffix(".log"), {**recipe, "run_dir": run})
    while not (run / "recipe.toml").exists() and process.is_alive():
        time.sleep(0.0005)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return ""
    if list(run.glob("checkpoints/.*.partial")):
        return "in a checkpoint"
    if list(run.rglob(".*.partial")):
        return "in another file"
    return "in the report" if (run / "evaluation.json").exists() else "in a step or a measurement"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, moments, different = random.Random(options.seed), Counter[str](), 0
    recipe = {"recipe": "toy", "overrides": [*SETTINGS, f"steps={options.steps}"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        child(folder / "whole.log", {**recipe, "run_dir": folder / "whole"}).join()
        length, expected = time.monotonic() - begin, bits(folder / "whole")
        done = 0
        while done < options.kills:
            run = folder / f"run-{done}"
            where = killed_once(run, recipe, chance.uniform(0, length))
            if where and not (run / "recipe.toml").exists():
                continue
            if where:
                newest = max((one.step for one in find_checkpoints(run)), default=0)
                log = folder / "resumed.log"
                log.write_text("")
                resumed = child(log, {"resume": run})
                resumed.join()
                said = f"resumed after step {newest}" in log.read_text() if newest else True
                whole = not any(part.problems for part in examine(run))
                same = resumed.exitcode == 0 and bits(run) == expected
                different += not (same and said and whole)
                moments[where] += 1
                done += 1
                print(json.dumps({"killed": where, "took": newest, "same": same, "said": said, "whole": whole}))
                if not (same and said and whole):
                    print(log.read_text())
            shutil.rmtree(run)
    print(f"{done} kills: {dict(moments)}; {done - different} gave the bits of the run never killed")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
