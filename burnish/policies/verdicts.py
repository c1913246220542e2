"""Verdicts of the probes for a model on disk, kept so that a large model is probed only once on a machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from burnish.errors import InputError
from burnish.policies.kernels.layout_probe import LayoutChoice
from burnish.policies.kernels.packing import (
    packed_states,
    padded_logits,
    padded_states,
    unpadded_logits,
    unpadded_states,
)
from burnish.system.files import write_json
from burnish.system.machine import gpus, processor
from burnish.system.paths import home
from burnish.system.reads import recorded_reads

LARGE = 1 << 26
"""Bytes of a model's files from which on a verdict is kept; smaller models are probed in a moment."""
LAYOUTS = {layout.__name__: layout for layout in (packed_states, padded_states, unpadded_states)}
HEADS = {logits.__name__: logits for logits in (padded_logits, unpadded_logits)}
PROBED = ("generation", "policies")
"""Packages of burnish whose code a verdict depends on."""


class Verdicts:
    """The layout and the samplers that the probes chose for a model, in the cache folder.

    They hold for the same files (by path, size and modification time), settings, processor, GPUs, libraries and code
    of burnish. Whatever cannot be read is probed again, and nothing is kept where the folder cannot be written.

    Args:
        files: path, size in bytes and modification time in ns of each file of the model.
        settings: what else the probes depend on: the type of the weights, the device, the adapter.
    """

    def __init__(self, files: Sequence[tuple[str, int, int]], *settings: Any) -> None:
        self._path: Path | None = None
        self._kept: dict[str, Any] = {}
        if sum(size for _, size, _ in files) < LARGE:
            return
        with suppress(OSError, ValueError, InputError), recorded_reads(None):
            libraries = [version(name) for name in ("torch", "transformers", "peft")]
            facts = [files, [repr(one) for one in settings], libraries, processor(), gpus(), _code()]
            self._path = home() / "probes" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
            if isinstance(kept := json.loads(self._path.read_text(encoding="utf-8")), dict):
                self._kept = kept

    def layout(self) -> LayoutChoice | None:
        """Return the layout, or None if it is not known."""
        with suppress(KeyError, TypeError, ValueError):
            name, reason, logits = self._kept["layout"]
            return LayoutChoice(LAYOUTS[name] if name else None, str(reason), HEADS[logits])
        return None

    def keep_layout(self, choice: LayoutChoice) -> None:
        names: dict[Any, str] = {function: name for name, function in (LAYOUTS | HEADS).items()}
        self._keep("layout", [names.get(choice.layout, ""), choice.reason, names[choice.logits]])

    def sampler(self, products: Any) -> tuple[str, str]:
        """Return the name of the sampler, and why it is not the fastest, for a type of products; "" if not known."""
        with suppress(KeyError, TypeError, ValueError):
            name, reason = self._kept["samplers"][str(products)]
            return str(name), str(reason)
        return "", ""

    def keep_sampler(self, products: Any, name: str, reason: str) -> None:
        known = self._kept.get("samplers")
        self._keep("samplers", (known if isinstance(known, dict) else {}) | {str(products): [name, reason]})

    def _keep(self, key: str, value: Any) -> None:
        self._kept[key] = value
        if self._path is not None:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, self._kept)


def _code() -> list[tuple[str, int, int]]:
    """Return the name, size and modification time of the code that probes, and that they judge."""
    root = Path(__file__).parents[1]
    paths = sorted(path for room in PROBED for path in (root / room).rglob("*.py"))
    return [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in paths]
