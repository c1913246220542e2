"""A working folder with a task and rewards, the real command line in a subprocess, and the bits a run reproduces."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from burnish.run.folder import comparable

JOBS = '''
"""A task and rewards as a user would write them."""

from burnish import Prompt

HEADS = ["The minister said", "Shares fell after", "The home team won", "我爱", "The new law would", "The crowd sang"]
TAILS = [" on Monday that", " the company said", " the match", "你。", " come into force", " on the way home"]


def prompts(first, last, prefix):
    return [Prompt(f"{prefix}{index}", HEADS[index], TAILS[index]) for index in range(first, last)]


class Headlines:
    """Six headlines: four to train on, two held out."""

    def train(self):
        return prompts(0, 4, "train")

    def evaluation(self):
        return prompts(3, 6, "held-out")


class Nothing(Headlines):
    def train(self):
        return []


class NoneHeldOut(Headlines):
    def evaluation(self):
        return []


class Twice(Headlines):
    def train(self):
        return prompts(0, 2, "a") + prompts(0, 2, "a")


class BothSides(Headlines):
    def evaluation(self):
        return prompts(1, 3, "train")


def raises(completion):
    raise ZeroDivisionError("division by zero")


def nan(completion):
    return float("nan")


def word(completion):
    return "good"


def too_few(completions):
    return [1.0] * (len(completions) - 1)


def unfillable(completion, teacher):
    return 1.0


def later(completion):
    """Fails once the policy has been updated."""
    if completion.policy_version >= 2:
        raise RuntimeError("the judge went home")
    return float(len(completion.text))
'''

TINY = """
name = "tiny"
steps = {steps}

[policy]
model = "{model}"

[task]
use = "jobs:Headlines"

[sampling]
prompts_per_step = 3
samples_per_prompt = 4
max_new_tokens = 10

[algorithm]
use = "grpo"
kl = {{ coefficient = 0.05, estimator = "k3", where = "loss" }}

[[reward]]
use = "bleu"

[[reward]]
use = "repetition"

[[reward]]
use = "perplexity"
weight = 0.5

[optimizer]
learning_rate = 5e-3
tokens_per_microbatch = 60

[evaluation]
every = 2
samples_per_prompt = 2
resamples = 200

[checkpoint]
every = 2
"""


SERVER = """
import json, os, signal, sys, traceback

import burnish.api, burnish.cli.app, burnish.reports.terminal.tables, burnish.reports.terminal.exactness
import jinja2, plotly.offline, rich.console, rich.table, sacrebleu.metrics
import torch._dynamo  # torch imports it for the first optimizer of a process, which takes seconds
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

for line in sys.stdin:
    job = json.loads(line)
    if "pid" in job:
        pid, status = os.waitpid(job["pid"], job["options"])
        print(os.waitstatus_to_exitcode(status) if pid else "running", flush=True)
        continue
    child = os.fork()
    if child == 0:
        # pytest-xdist's workers ignore SIGINT, and a child inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        for descriptor in (1, 2):
            target = os.open(job["output"][descriptor - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(target, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["burnish", *job["arguments"]]
        try:
            exec(job["first"])
            burnish.cli.app.main()
            status = 0
        except SystemExit as left:
            status = left.code or 0
        except BaseException:
            traceback.print_exc()
            status = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
"""
"""A process that imports everything once and forks a child for each command, which saves the start-up time."""


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    yield process
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@dataclass(frozen=True)
class Finished:
    """The exit status and output of a finished command."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]


@dataclass
class Command:
    """A command in a child of the server, with what these tests use of ``subprocess.Popen``."""

    server: subprocess.Popen
    pid: int
    output: list[Path]
    returncode: int | None = None

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            status = reply(self.server, {"pid": self.pid, "options": options})
            self.returncode = None if status == "running" else int(status)
        return self.returncode

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> list[bytes]:
        self.wait()
        return [path.read_bytes() if path.exists() else b"" for path in self.output]


def reply(server: subprocess.Popen, request: dict[str, Any]) -> str:
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return server.stdout.readline().strip()


def restore_sigint() -> None:
    """Undo the ignored SIGINT that a child would inherit from a pytest-xdist worker."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Workspace:
    """A folder to work in, and the commands that run there."""

    folder: Path
    server: subprocess.Popen
    started: list[subprocess.Popen | Command] = field(default_factory=list)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def start(self, *arguments: object, environment: dict[str, str] | None = None, **options: Any) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        process = subprocess.Popen(
            [sys.executable, "-m", "burnish.cli.app", *map(str, arguments)],
            cwd=self.folder, env={**os.environ, **(environment or {})}, preexec_fn=restore_sigint, **options,
        )  # fmt: skip
        self.started.append(process)
        return process

    def fork(self, *arguments: object, first: str = "", **environment: str) -> Command:
        """Run a command in a forked child of the server, which is faster, after the Python code ``first``."""
        stem = f"{self.folder.name}-{len(self.started)}"
        output = [self.folder.parent / f"{stem}.{name}" for name in ("out", "err")]
        job = {"folder": str(self.folder), "arguments": list(map(str, arguments)), "output": list(map(str, output)),
               "first": first, "environment": environment}  # fmt: skip
        command = Command(self.server, int(reply(self.server, job)), output)
        self.started.append(command)
        return command

    def finish(self, process: subprocess.Popen | Command) -> Finished:
        out, err = process.communicate(timeout=300)
        return Finished(
            process.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace")
        )

    def run(self, *arguments: object, **options: Any) -> Finished:
        """Run a command in a new Python process."""
        return self.finish(self.start(*arguments, **options))

    def ask(self, *arguments: object, first: str = "", **environment: str) -> Finished:
        """The same, to its end."""
        return self.finish(self.fork(*arguments, first=first, **environment))


@pytest.fixture
def workspace(tmp_path: Path, server: subprocess.Popen) -> Iterator[Workspace]:
    """Yield a working folder with ``jobs.py``."""
    (tmp_path / "work").mkdir()
    here = Workspace(tmp_path / "work", server)
    here.write("jobs.py", JOBS)
    yield here
    for process in here.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def tiny_recipe(tiny: Callable[[str], Path]) -> Callable[..., str]:
    """Return a function that makes a recipe for a tiny language model, with three rewards, KL and held-out measurements."""

    def text(kind: str = "llama", *, steps: int = 6, extra: str = "") -> str:
        return TINY.format(model=tiny(kind), steps=steps) + extra

    return text


@pytest.fixture
def traces() -> Callable[[Path], dict[str, Any]]:
    """Return a function that reads everything in a run folder that is reproducible to the bit, by name."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def read(run: Path) -> dict[str, Any]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        files = [
            "samples.jsonl",
            "warnings.jsonl",
            "evaluation.json",
            "evaluation/before.json",
            "evaluation/after.json",
        ]
        newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name.partition("-")[2]))
        tensors = sorted(newest.rglob("*.safetensors"))
        return {
            "metrics": [comparable(row) for row in rows],
            "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
            "model": os.readlink(run / "model"),
            "state": (newest / "state.json").read_text(),
            **{name: digest(run / name) for name in files if (run / name).exists()},
            **{str(path.relative_to(newest)): digest(path) for path in tensors},
        }

    return read


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Connect this process to a cluster of its own, which the runs of a file share."""
    from burnish.backends.ray.cluster import connected
    from burnish.recipe.backend import BackendSection

    with connected(BackendSection(use="ray", samplers=3, cpus=1)) as ray:
        yield ray


@pytest.fixture
def here(workspace, tiny_recipe, monkeypatch) -> Callable[..., tuple[Path, Path]]:
    """Return a function that writes a recipe and runs it in this process. It returns the recipe and the run folder."""
    from tests.end_to_end.ray_runs import train

    monkeypatch.chdir(workspace.folder)

    def run(
        steps: int = 4, extra: str = "", model: Path | None = None, changes: Sequence[str] = ()
    ) -> tuple[Path, Path]:
        text = tiny_recipe(steps=steps, extra=extra)
        named = text if model is None else re.sub('(?m)^model = ".*"', f'model = "{model}"', text)
        path = workspace.write("tiny.toml", named)
        return path, train(path, workspace / "here", "optimizer.reuse_sampling=false", *changes).run_dir

    return run
