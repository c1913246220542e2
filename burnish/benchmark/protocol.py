"""What the harness asks of a runner and what a runner answers: one order file in, one JSON object out.

A runner is a process of its own, in whatever environment its library needs, so this module uses the standard library
alone: peers import it without any of burnish's dependencies.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NoReturn

Kind = Literal["grpo", "sampling"]


@dataclass(frozen=True, slots=True)
class Order:
    """One piece of work, the same for every runner.

    Attributes:
        workload: its name.
        kind: a whole GRPO step, or sampling alone.
        model: a folder in Hugging Face form.
        prompts: texts; every runner encodes them with the model's own tokenizer.
        prompt_ids: what that must give, token by token; a runner refuses to measure anything else.
        samples_per_prompt: G.
        max_new_tokens: where an answer is cut.
        steps: steps that are measured.
        warmup: steps before them, timed apart.
        microbatch: sequences in one backward pass of a runner that has to be told.
        lora_rank: of the adapter; None trains all weights.
        letter: the reward is the share of this letter in the answer.
        options: for burnish alone, changes to its recipe (``key=value``).
    """

    workload: str
    kind: Kind
    model: str
    prompts: tuple[str, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    samples_per_prompt: int
    max_new_tokens: int
    steps: int
    warmup: int
    microbatch: int
    lora_rank: int | None = None
    temperature: float = 1.0
    learning_rate: float = 1e-5
    seed: int = 0
    threads: int = 2
    letter: str = "e"
    options: tuple[str, ...] = ()

    @property
    def completions(self) -> int:
        """N = P * G, the completions of a step."""
        return len(self.prompts) * self.samples_per_prompt

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each prompt counted once."""
        return sum(map(len, self.prompt_ids))

    def reward(self, text: str) -> float:
        """The share of the letter, in [0, 1]: cheap, and not the same for every answer."""
        return text.count(self.letter) / max(1, len(text))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Order:
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in ("prompts", "options"):
            found[key] = tuple(found[key])
        found["prompt_ids"] = tuple(map(tuple, found["prompt_ids"]))
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Step:
    """One step as a runner measured it.

    Attributes:
        seconds: of the whole step.
        sampling_seconds: of it, spent sampling.
        tokens: sampled, the end-of-text tokens included, padding not.
    """

    seconds: float
    sampling_seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a runner measured.

    Attributes:
        warmup: steps before the measurement.
        steps: the measured ones.
        peak_bytes: the largest resident memory of the runner's process (VmHWM of proc(5)); 0 where the system does not say.
        versions: of the packages that did the work.
        notes: anything else worth keeping.
    """

    runner: str
    warmup: tuple[Step, ...]
    steps: tuple[Step, ...]
    peak_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Answer:
        """Raises ValueError, KeyError or TypeError where the text is no answer."""
        found = json.loads(text)
        for key in ("warmup", "steps"):
            found[key] = tuple(Step(**step) for step in found[key])
        return cls(**found)


class Stage:
    """Standard output, kept for the one answer: whatever libraries print goes to standard error instead."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._output = os.dup(1)
        os.dup2(2, 1)

    def answer(self, answer: Answer) -> NoReturn:
        """Prints the answer and ends the process at once: a library's own way of leaving may hang or print."""
        sys.stdout.flush()
        sys.stderr.flush()
        with open(self._output, "w", encoding="utf-8") as output:
            output.write(json.dumps(asdict(answer)) + "\n")
        os._exit(0)


def order_of_this_process() -> Order:
    """The order whose path is the process's only argument."""
    if len(sys.argv) != 2:
        sys.exit("a runner takes one argument, the path of its order: start it with `burnish bench`")
    return Order.read(Path(sys.argv[1]))


def refuse_other_prompts(order: Order, encoded: Sequence[Sequence[int]]) -> None:
    """Ends the process where a library encodes the prompts otherwise: it would not be the same work."""
    if tuple(map(tuple, encoded)) != order.prompt_ids:
        sys.exit(f"the prompts of {order.workload} are encoded to other tokens here than by the model's tokenizer")


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages; those that are not there are left out."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
