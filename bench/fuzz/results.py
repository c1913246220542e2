"""Results that a command must repeat to the bit if it accepts its input."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from burnish.run.folder import comparable, find_checkpoints, read_lines
from burnish.run.manifest import MANIFEST


def produced(name: str, work: Path, out: str) -> object:
    """Return what a command produced, by the name of the result: the bits of the run ("bits ..."), or what it printed."""
    return run_bits(work / "run") if name.startswith("bits ") else out


def run_bits(run: Path) -> dict[str, Any]:
    """Return everything of a finished run that has to be the same, by name."""
    names = ("samples.jsonl", "held_out.jsonl", "evaluation.json", "evaluation/before.json", "evaluation/after.json")
    files = [path for name in names if (path := run / name).is_file()]
    checkpoints = find_checkpoints(run)
    newest = checkpoints[-1].folder
    # These have paths of the folder that the run began in.
    placed = (MANIFEST, "adapter_config.json")
    files += [path for path in newest.rglob("*") if path.is_file() and path.name not in placed]
    digests = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    rows: list[Any] = [comparable(row) for row in read_lines(run / "metrics.jsonl")]
    digests["metrics.jsonl"] = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return {**digests, "model": os.readlink(run / "model")}
