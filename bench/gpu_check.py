"""Checks burnish on a GPU: ``python -m bench.gpu_check`` writes bench/results/gpu-<card>.md and .json in eight minutes.

Small random models of several types are built from their config classes. What burnish computes with them on the device, in
float32 and in bfloat16, is compared with what transformers alone computes on the CPU in float32, one text at a time. Their
weights are numbers of bfloat16, so that rounding them is not part of any error. A check that raises becomes a row with the
error. Then follow the sampler's statistics, a short run that learns, and the speed of a model of SmolLM2-135M's shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft
import torch
import transformers

import burnish
from bench.gpu_cases import GPUCase, build, share_of_letters
from bench.gpu_speed import LONG, SHAPES, SHORT, check_speed, check_trl
from burnish.benchmark.model_check import Measured
from burnish.policies.kernels.flex_packing import flex_error
from burnish.reports.terminal.progress import make_observer
from burnish.system.machine import cores, processor

DTYPES = ("float32", "bfloat16")
TYPES = ("llama", "qwen3", "gemma3_text", "mistral", "qwen3_moe", "mamba")


@dataclass(slots=True)
class Board:
    """The rows of the table; a check that would begin after the deadline is skipped."""

    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    written: Callable[[Sequence[dict[str, Any]]], None] = lambda rows: None
    """Called after each check, so that a run that is cut off leaves what it measured."""

    def check(self, name: str, model: str, dtype: str, call: Callable[[], Measured]) -> None:
        row: dict[str, Any] = {"check": name, "model": model, "dtype": dtype}
        begin = time.monotonic()
        if begin > self.deadline:
            row |= {"result": "skipped", "note": "out of time"}
        else:
            try:
                finding = call()
                row |= {**dataclasses.asdict(finding), "result": "ok" if finding.passed else "FAILED"}
            except Exception as error:
                text = " ".join(str(error).split())
                row |= {"result": "ERROR", "note": f"{type(error).__name__}: {text[:300]}"}
        row["seconds"] = time.monotonic() - begin
        self.rows.append(row)
        self.written(self.rows)
        measured = f"{row['measured']:.3g}" if "measured" in row else ""
        print(f"{row['result']:8}{name}, {model}, {dtype}: {measured} {row.get('note', '')}", flush=True)


def check_type(board: Board, kind: str, source: Path, dtype: str, device: str) -> None:
    """All checks of one model type in one dtype."""
    case = GPUCase(source, dtype, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checks: dict[str, Callable[[], Measured]] = {
            "log-probabilities": case.check_logprobs,
            "gradient": case.check_gradient,
            "sampler against policy": case.check_sampler_against_policy,
            "saved and loaded": lambda: case.check_saved(folder / "saved"),
            "LoRA against merged": lambda: case.check_lora(folder / "adapter"),
            "LoRA: sampler against policy": lambda: case.check_sampler_against_policy(lora=True),
            "AdamW step": lambda: case.check_optimizer(folder / "optimizer"),
            "training steps": case.check_step,
            "LoRA: training steps": lambda: case.check_step(lora=True),
        }
        for name, call in checks.items():
            board.check(name, kind, dtype, call)


def check_sampling(board: Board, source: Path, dtype: str, device: str, draws: int) -> None:
    """The samplers' statistics on one type."""
    case = GPUCase(source, dtype, device)
    board.check("same seed twice", source.name, dtype, case.check_same_samples)
    board.check("same run twice", source.name, dtype, case.check_same_weights)
    if dtype == "float32":
        board.check("sampled frequencies", source.name, dtype, lambda: case.check_frequencies(draws))
        board.check("greedy against generate", source.name, dtype, lambda: case.check_greedy(32))


def check_learning(source: Path, dtype: str, device: str, steps: int, samples: int) -> Measured:
    """A whole run with its measurements before and after; it has learnt where the interval is above 0."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "prompts.jsonl"
        data.write_text("".join(json.dumps({"prompt": f"Text {place}:"}) + "\n" for place in range(64)))
        recipe = {
            "name": "gpu-check", "steps": steps, "policy": {"model": str(source), "dtype": dtype, "device": device},
            "task": {"use": "data", "path": str(data), "held_out_percent": 25, "chat": False},
            "sampling": {"prompts_per_step": 8, "samples_per_prompt": samples, "max_new_tokens": 24},
            "optimizer": {"learning_rate": 3e-3}, "algorithm": {"use": "grpo"},
            "evaluation": {"samples_per_prompt": samples},
        }  # fmt: skip
        result = burnish.train(
            recipe, rewards={share_of_letters: 1.0}, run_dir=Path(scratch) / "run", observer=make_observer(quiet=True)
        )
    row = result.evaluation["reward"]
    low, high = row["interval"]
    note = f"{row['before']:.3f} to {row['after']:.3f} on {row['n']} held-out prompts, difference in [{low:.3f}, {high:.3f}]"
    return Measured(row["difference"], low > 0, "interval above 0", note=f"{steps} steps: share of letters {note}")


def check_flex(device: str) -> Measured:
    """Whether packed texts run by FlexAttention there."""
    error = flex_error(torch.device(device)) if device == "cuda" else "only on a GPU"
    return Measured(0.0, error is None or device != "cuda", "none", note=error or "works, with its gradient")


def check_speeds(board: Board, dtype: str, device: str) -> None:
    """Steps of two models and two loads; TRL's of the smaller ones."""
    small, large = SHAPES
    loads = {"short": SHORT, "long": LONG}
    for name, load in loads.items():
        board.check(f"speed, {name}", small, dtype, partial(check_speed, small, dtype, device, load))
        board.check(f"speed of TRL, {name}", small, dtype, partial(check_trl, small, dtype, device, load))
    if dtype == "bfloat16":
        board.check("speed, short", large, dtype, partial(check_speed, large, dtype, device))
        board.check("speed of TRL, short", large, dtype, partial(check_trl, large, dtype, device))


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "device": name, "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
        "burnish": burnish.__version__, "processor": processor(), "cores": cores(), "tf32": False,
    }  # fmt: skip


def table(about: dict[str, Any], rows: Sequence[dict[str, Any]], seconds: float) -> str:
    """The rows as Markdown."""
    results = [row["result"] for row in rows]
    counts = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
    lines = [
        f"# {about['device']}", "",
        f"torch {about['torch']}, transformers {about['transformers']}, peft {about['peft']}; {about['processor']}, "
        f"{about['cores']} cores; TF32 off. {len(rows)} checks in {seconds:.0f} s: {counts}.", "",
        "Measured is the largest difference from transformers alone on the CPU in float32 (or as the note says): float32 in "
        "nats, gradients as a share of the largest entry, bfloat16 as a share of the largest number. Alone is the same of "
        "transformers without burnish on this device in this type. The limit is 0.0001 in float32; in bfloat16 it is 0.02, "
        "or 1.5 times what transformers alone is off where that is more.", "",
        "| check | model | type | result | measured | limit | alone | seconds | note |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        measured, alone = ("" if row.get(key) is None else f"{row[key]:.2g}" for key in ("measured", "alone"))
        note = str(row.get("note") or "").replace("|", "/")
        lines.append(
            f"| {row['check']} | {row['model']} | {row['dtype']} | {row['result']} | {measured} | {row.get('limit', '')} "
            f"| {alone} | {row['seconds']:.1f} | {note} |"
        )
    return "\n".join(lines) + "\n"


def run(device: str, types: Sequence[str], board: Board, *, small: bool) -> None:
    """All checks. ``small`` leaves out speed and shortens the rest, for a machine without a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as scratch:
        sources: dict[str, Path] = {}

        def build_all() -> Measured:
            sources.update({kind: build(kind, Path(scratch)) for kind in types})
            return Measured(len(sources), True, note="models built")

        board.check("build", "all", "float32", build_all)
        board.check("FlexAttention", "all", "float32", partial(check_flex, device))
        first = next(iter(sources.values()))
        for dtype in DTYPES:
            for kind, source in sources.items():
                check_type(board, kind, source, dtype, device)
            check_sampling(board, first, dtype, device, 1000 if small else 8000)
            steps, samples = (4, 4) if small else (30, 16)
            call = partial(check_learning, first, dtype, device, steps, samples)
            board.check("a run learns", first.name, dtype, call)
            if not small:
                check_speeds(board, dtype, device)


def write(stem: Path, about: dict[str, Any], begin: float, rows: Sequence[dict[str, Any]]) -> None:
    """The table and the JSON."""
    seconds = time.monotonic() - begin
    stem.with_suffix(".md").write_text(table(about, rows, seconds), encoding="utf-8")
    text = json.dumps({"machine": about, "seconds": seconds, "rows": rows}, indent=1)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--types", default=",".join(TYPES), help="model types, with commas between them")
    parser.add_argument("--seconds", type=float, default=420, help="after which no further check begins")
    parser.add_argument("--small", action="store_true", help="fewer draws and steps, no speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    options = parser.parse_args()
    about, begin = machine(options.device), time.monotonic()
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    board = Board(begin + options.seconds, written=partial(write, options.out / name, about, begin))
    run(options.device, options.types.split(","), board, small=options.small)
    print(f"{options.out / name}.md, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
