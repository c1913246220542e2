"""Protocol between harness and runners: one job file in, one JSON object out.

It uses only the standard library, so that peers can import it without burnish's dependencies.
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
class BenchmarkJob:
    """One benchmark job, the same for every runner.

    Attributes:
        kind: a whole GRPO step, or sampling alone.
        model: a folder in Hugging Face form.
        prompts: texts, which every runner encodes with the model's tokenizer.
        prompt_ids: their expected token ids; a runner refuses to measure anything else.
        samples_per_prompt: G.
        max_new_tokens: length limit of an answer.
        steps: measured steps.
        warmup: steps before them, timed separately.
        microbatch: sequences per backward pass, for runners that need to be told.
        lora_rank: of the adapter; None trains all weights.
        letter: the reward is the share of this letter in the answer.
        options: changes to the recipe (``key=value``), for burnish only.
        questions: the users' messages behind the prompts, if those are in the chat template, for burnish only: it reads
            markers of the template in a plain prompt as ordinary text.
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
    questions: tuple[str, ...] = ()

    @property
    def completions(self) -> int:
        """N = P * G, the completions of a step."""
        return len(self.prompts) * self.samples_per_prompt

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each prompt counted once."""
        return sum(map(len, self.prompt_ids))

    def reward(self, text: str) -> float:
        """Return the share of the letter, in [0, 1]: a cheap reward that differs between answers."""
        return text.count(self.letter) / max(1, len(text))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> BenchmarkJob:
        fields = json.loads(path.read_text(encoding="utf-8"))
        for key in ("prompts", "options", "questions"):
            fields[key] = tuple(fields[key])
        fields["prompt_ids"] = tuple(map(tuple, fields["prompt_ids"]))
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Step:
    """One step as a runner measured it: its seconds, those spent sampling, and its sampled tokens without padding."""

    seconds: float
    sampling_seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """Measurements of a runner; ``peak_bytes`` is the largest resident memory of its process."""

    runner: str
    warmup: tuple[Step, ...]
    steps: tuple[Step, ...]
    peak_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> JobResult:
        """Read a result. Raises ValueError, KeyError or TypeError if the text is not one."""
        fields = json.loads(text)
        for key in ("warmup", "steps"):
            fields[key] = tuple(Step(**step) for step in fields[key])
        return cls(**fields)


class Stage:
    """Standard output, reserved for the result: whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._output = os.dup(1)
        os.dup2(2, 1)

    def answer(self, answer: JobResult) -> NoReturn:
        """Print the result and end the process at once, since a library's exit handlers may hang or print."""
        sys.stdout.flush()
        sys.stderr.flush()
        with open(self._output, "w", encoding="utf-8") as output:
            output.write(json.dumps(asdict(answer)) + "\n")
        os._exit(0)


def read_job() -> BenchmarkJob:
    """Read the job whose path is the process's only argument."""
    if len(sys.argv) != 2:
        sys.exit("a runner takes one argument, the path of its job: start it with `burnish bench`")
    return BenchmarkJob.read(Path(sys.argv[1]))


def refuse_other_prompts(job: BenchmarkJob, encoded: Sequence[Sequence[int]]) -> None:
    """End the process if a library encodes the prompts differently, since the work would not be the same."""
    if tuple(map(tuple, encoded)) != job.prompt_ids:
        sys.exit(f"the prompts of {job.workload} are encoded to other tokens here than by the model's tokenizer")


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    installed = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
