"""Tries every causal type of the installed transformers: ``python -m bench.zoo`` writes docs/models.md and a JSON.

A tiny random model of each type is built from its configuration class and checked as ``burnish check`` checks a model.
Each type has a process of its own with a time limit, so that a crash, a time-out or a lack of memory is a row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft
import torch
import transformers

from bench.tiny_models import write_tiny_model
from burnish.benchmark.model_check import ModelCase, check_model, verdict
from burnish.errors import one_line

ROOT = Path(__file__).parent.parent
COLUMNS = ("log-probabilities", "large logits", "sampler", "gradient", "saved", "LoRA", "full step", "LoRA step")
MEMORY = 6 << 30
"""Address space of a type's process, in bytes, beyond what is mapped at its start."""
INTRODUCTION = """\
# Models

burnish trains every causal language model that transformers can generate from, or refuses it before training and names
the reason. This table shows, for every causal type of the installed transformers, what a tiny random model of it
measures. `burnish check MODEL` runs the same checks on your own model.

Every check compares burnish with a plain forward pass of each text by transformers alone: no padding, no cache, no
packing. A check passes within 1e-4 nats, or 1e-4 of the largest entry of a gradient; a saved model must give the same
bits; `mismatch_kl` of a step must stay below 1e-8. A figure in place of `ok` is the difference that was measured.

Attention to the keys of the highest scores breaks ties by the text's length, so texts are limited to the tokens that it
sees whole: `index_topk` (DeepSeek V3.2, GLM with sparse attention) or `keep_window_size` (Doge), 2048 as published.

| column | compares |
|---|---|
| log-probabilities | the policy's, of texts of unequal lengths, some with a common prompt |
| large logits | the same after the head's weights have grown fourfold, where a soft cap shows |
| sampler | those that the sampler records while it samples |
| gradient | the gradient of a random function of the log-probabilities, all weights trained |
| saved | the model saved and reopened, in burnish and in transformers |
| LoRA | an adapter as it is trained, as burnish loads it, and as it samples, with the adapter merged by peft |
| full step, LoRA step | two steps of GRPO: finite, and the weights move |

The layout is how texts are arranged for a forward pass: packed runs each prompt once and pads nothing; plain runs a
padded batch; own head leaves the logits to the model. Run `make zoo` to write this page again.
"""

OLDER = """\
## Saved models in transformers 4.57

A saved model gives the same logits in transformers 4.57.6, except these types:

| types | in version 4.57.6 |
|---|---|
| bamba, granitemoehybrid, mamba2 | other logits with several groups: it normalises the whole width, not each group |
| apertus, bigbird_pegasus, blt, gemma3n_text, modernbert-decoder, recurrent_gemma, reformer, zamba2 | other logits |
| got_ocr2 | other logits: it ignores the tied head of the outer configuration |
| cpmant, dbrx, fuyu, xlstm | does not open |
| jamba, zamba | opens only with its kernels for GPUs |
"""
"""Measured with tiny models of each type that both versions have, whose frequencies are not the default ones."""


@dataclass(slots=True)
class Job:
    """A type whose process runs."""

    kind: str
    process: Any
    results: Connection
    begin: float = field(default_factory=time.monotonic)


def check_type(kind: str) -> dict[str, Any]:
    """Return the row of a type."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            source = write_tiny_model(kind, folder)
        except Exception as error:
            return {"verdict": f"not built: {type(error).__name__}: {one_line(error)[:200]}", "checks": []}
        results = list(check_model(source, folder))
    return {"verdict": verdict(results), "checks": [one.to_json() for one in results]}


@torch.no_grad()
def _warm_up() -> None:
    """Import once what each process needs; a backward pass here would make theirs fail."""
    with tempfile.TemporaryDirectory() as scratch:
        case = ModelCase(write_tiny_model("llama", Path(scratch)))
        case.expected = case.policy.token_logprobs(case.completions), {}
        case.check_lora(Path(scratch) / "adapter")


def _work(kind: str, results: Connection) -> None:
    """Send the row of a type; what it prints is dropped."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _mapped_bytes(), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    results.send(check_type(kind))


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(kinds: Sequence[str], *, jobs: int, seconds: float, out: Path) -> list[dict[str, Any]]:
    """Check types, ``jobs`` at a time, and write the rows after each."""
    _warm_up()
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(kinds)), []
    rows: dict[str, dict[str, Any]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            kind = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(kind, sender), daemon=True)
            process.start()
            sender.close()
            running.append(Job(kind, process, receiver))
        multiprocessing.connection.wait([job.results for job in running], timeout=1)
        for job in list(running):
            row = _row(job, seconds)
            if row is not None:
                running.remove(job)
                rows[job.kind] = {"type": job.kind, **row, "seconds": round(time.monotonic() - job.begin, 1)}
                print(f"{len(rows):3}/{len(kinds)} {job.kind}: {row['verdict'][:150]}", flush=True)
                _write_json(out, [rows[kind] for kind in kinds if kind in rows])
    return [rows[kind] for kind in kinds]


def _row(job: Job, seconds: float) -> dict[str, Any] | None:
    """Return the row of a type that has ended or whose time is up, else None."""
    row: dict[str, Any] | None = None
    if job.results.poll():
        try:
            row = job.results.recv()
        except EOFError:
            job.process.join()
            code = job.process.exitcode
            row = {"verdict": f"crash: {signal.Signals(-code).name if code < 0 else f'exit {code}'}", "checks": []}
    elif time.monotonic() - job.begin > seconds:
        job.process.kill()
        row = {"verdict": f"crash: not finished after {seconds:.0f} s", "checks": []}
    if row is not None:
        job.process.join()
    return row


def versions() -> dict[str, str]:
    modules = {"transformers": transformers, "torch": torch, "peft": peft}
    return {"python": platform.python_version(), **{name: module.__version__ for name, module in modules.items()}}


def _write_json(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"versions": versions(), "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")


def page(rows: Sequence[dict[str, Any]], about: dict[str, str]) -> str:
    """Return the rows as a Markdown page."""
    counts = Counter(row["verdict"].partition(":")[0] for row in rows)
    counted = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    installed = ", ".join(f"{name} {version}" for name, version in about.items())
    lines = [INTRODUCTION, "## Types", "", f"{len(rows)} types: {counted}.", f"Measured with {installed}.", ""]
    lines += [f"| type | layout | {' | '.join(COLUMNS)} | verdict |", "|---" * (len(COLUMNS) + 3) + "|"]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        checks = {one["check"]: one for one in row["checks"]}
        layout, reason = _layout(checks)
        if reason:
            reasons.setdefault(reason, []).append(row["type"])
        cells = [_cell(checks.get(name)) for name in COLUMNS]
        lines.append(f"| {row['type']} | {layout} | {' | '.join(cells)} | {row['verdict'].replace('|', '/')} |")
    lines += ["", "## Why a type is not packed", "", "| reason | types |", "|---|---|"]
    lines += [
        f"| {reason} | {', '.join(kinds)} |" for reason, kinds in sorted(reasons.items(), key=lambda x: -len(x[1]))
    ]
    return "\n".join(lines) + f"\n\n{OLDER}"


def _layout(checks: dict[str, dict[str, Any]]) -> tuple[str, str]:
    loading = checks.get("loading")
    if loading is None or not loading["passed"]:
        return "", ""
    layout, _, reason = loading["note"].partition(": ")
    return layout, reason.replace("|", "/")


def _cell(check: dict[str, Any] | None) -> str:
    if check is None:
        return ""
    if check["passed"]:
        return "ok"
    return f"{check['measured']:.2g}" if check["measured"] is not None else "refused" if check["refused"] else "crash"


def main() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    every = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="", help="model types, with commas between them; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="types at a time")
    parser.add_argument("--seconds", type=float, default=180, help="after which a type's process is killed")
    parser.add_argument("--json", type=Path, help="default: bench/results/models.json, if all types are tried")
    options = parser.parse_args()
    kinds = options.types.split(",") if options.types else every
    begin = time.monotonic()
    out = options.json or (
        Path(tempfile.gettempdir()) / "zoo.json" if options.types else ROOT / "bench/results/models.json"
    )
    rows = run(kinds, jobs=options.jobs, seconds=options.seconds, out=out)
    text = page(rows, versions())
    if options.types or options.json:
        print(text[text.index("## Types") :])
    else:
        target = ROOT / "docs/models.md"
        before = target.read_text(encoding="utf-8") if target.exists() else ""
        _, heading, rest = before.partition("## Chat templates")  # written by bench/templates.py
        target.write_text(f"{text}\n{heading}{rest}" if heading else text, encoding="utf-8")
    print(f"{out}, {time.monotonic() - begin:.0f} s: {Counter(row['verdict'].partition(':')[0] for row in rows)}")


if __name__ == "__main__":
    main()
