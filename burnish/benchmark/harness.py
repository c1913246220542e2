"""Benchmark of burnish and its peers on the same jobs, each in a separate process, and its tables."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.benchmark import floor
from burnish.benchmark.protocol import BenchmarkJob, JobResult
from burnish.benchmark.workloads import Decode, Encode, Render, Workload, prompts_for, workload
from burnish.errors import BurnishError, InputError
from burnish.protocols import Observer
from burnish.system.machine import cores, load_average, memory, processor, products, spin

CHECKOUT = Path(__file__).parents[2]
PEERS = {
    "trl": ("grpo", "trl_grpo.py"),
    "hf": ("sampling", "hf_generate.py"),
    "vllm": ("sampling", "vllm_sampling.py"),
    "openvino": ("sampling", "openvino_sampling.py"),
}
"""Name -> kind of work, and runner in bench/peers; its environment is .venv-<name> in the checkout."""
ENVIRONMENTS = {"hf": "trl"}
"""Peers that use another peer's environment."""
PARAMETERS = 134_515_008
"""Parameters of SmolLM2-135M, its tied embedding and head counted once."""

MOST_LOAD = 0.3
"""Largest load average per core of the last minute."""
LEAST_SHARE = 0.97
"""Smallest share of processor time that a busy loop on every core must get."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """State of the machine: the load average of the last minute, if the system has one, the share of processor time
    that a busy loop on every core got, and the cores that this process may use."""

    load: float | None
    share: float
    cores: int

    @property
    def complaint(self) -> str | None:
        """Reason why timings taken now would be unreliable; None on a quiet machine."""
        if self.share < LEAST_SHARE:
            return f"a busy loop on {self.cores} cores got {self.share:.0%} of the time it asked for"
        if self.load is not None and self.load > MOST_LOAD * self.cores:
            return f"the load average of the last minute is {self.load:.2f} on {self.cores} cores"
        return None


@dataclass(frozen=True, slots=True)
class WorkloadMedians:
    """One workload's medians over the rounds, by runner.

    Attributes:
        sampling: seconds per step spent sampling.
        tokens: sampled per step.
        peak: bytes.
        ratio: by peer, the median over rounds of its seconds per step divided by burnish's.
        token_ratio: the same for seconds per sampled token.
        limits: the shares of the machine's limit that burnish reached: "sampling", "training".
    """

    workload: str
    seconds: Mapping[str, float]
    sampling: Mapping[str, float]
    tokens: Mapping[str, float]
    peak: Mapping[str, int]
    ratio: Mapping[str, float]
    token_ratio: Mapping[str, float]
    limits: Mapping[str, float]


def peer_python(peer: str) -> Path | None:
    """Return the interpreter of a peer's environment, or None if that is not built."""
    path = CHECKOUT / f".venv-{ENVIRONMENTS.get(peer, peer)}" / "bin" / "python"
    return path if path.exists() else None


def check_peers(names: Sequence[str]) -> None:
    """Raise InputError if a peer is unknown or has no environment."""
    for name in names:
        if name not in PEERS:
            raise InputError(f"there is no peer named '{name}'; known: {', '.join(PEERS)}")
        if peer_python(name) is None:
            raise InputError(f"peer '{name}' has no environment yet: build it with make bench-peer")


def run_benchmark(
    names: Sequence[str], *, peers: Sequence[str], rounds: int, out: Path, threads: int, force: bool,
    observer: Observer,
) -> dict[str, Any]:  # fmt: skip
    """Measure, and write ``bench.json``, ``bench.md`` and ``bench.svg`` into ``out`` after each measurement.

    Raises InputError for an unknown name, a missing peer, or a machine that is not quiet (unless ``force``), and
    BurnishError if burnish's own runner failed.
    """
    works = [workload(name) for name in names]
    check_peers(peers)
    load = load_average()  # before the busy loop, which adds to it
    quiet = Quiet(load, spin(), cores())
    if quiet.complaint and not force:
        raise InputError(f"the machine is not quiet: {quiet.complaint}; wait, or measure all the same with --force")
    jobs = _jobs(works, threads)
    observer.message("measuring the machine's own products")
    measured = products((*floor.SMALL_ROWS, floor.LARGE_ROWS))
    speeds = floor.speeds(measured)
    results: dict[str, Any] = {
        "processor": processor(), "threads": threads, "memory": (memory() or (0, 0))[0],
        "load": quiet.load, "share": quiet.share,
        "gflops": {str(rows): speeds.small[rows] for rows in floor.SMALL_ROWS} | {"2048": speeds.large}, "answers": [],
    }  # fmt: skip
    for number in range(1, rounds + 1):
        for work in works:
            for runner in ("burnish", *(peer for peer in peers if PEERS[peer][0] == work.kind)):
                observer.message(f"round {number}: {work.name}, {runner}")
                try:
                    answer = run_job(runner, jobs[work.name, runner != "burnish"])
                except BurnishError as error:
                    if runner == "burnish":
                        raise
                    observer.message(f"left out: {error}", level="warning")
                    continue
                results["answers"].append({"round": number, "workload": work.name, **answer})
                _write(results, works, jobs, speeds, out)
    return results


def tokenizer_tools() -> tuple[str, list[str], Encode, Decode, Render]:
    """Return the built-in model's folder, news texts, and its tokenizer's encode, decode and chat template."""
    from transformers import AutoTokenizer

    from burnish.catalogue.convert import model_folder
    from burnish.tasks.news import articles

    folder = str(model_folder("smollm2-135m"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def render(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return folder, [article.text for article in articles()[0]], encode, decode, render


def _jobs(works: Sequence[Workload], threads: int) -> dict[tuple[str, bool], BenchmarkJob]:
    """Return (workload, whether for a peer) -> job, on the built-in model and news."""
    folder, texts, encode, decode, render = tokenizer_tools()
    jobs = {}
    for work in works:
        prompts = prompts_for(work, texts, encode, decode, render)
        for peer in (False, True):
            jobs[work.name, peer] = work.job(folder, prompts, encode, peer=peer, seed=0, threads=threads)
    return jobs


def run_job(runner: str, job: BenchmarkJob) -> dict[str, Any]:
    """Run a job and return its result. Raises BurnishError with the last line of what it printed if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        job.write(path)
        if runner == "burnish":
            command = [sys.executable, "-m", "burnish.benchmark.runner", str(path)]
        else:
            command = [str(peer_python(runner)), str(CHECKOUT / "bench" / "peers" / PEERS[runner][1]), str(path)]
        settings = {"PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(job.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    try:
        answer = JobResult.parse(done.stdout)
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        if done.returncode == -signal.SIGKILL:
            last = "the system killed it; it probably needs more memory than is free"
        raise BurnishError(f"{runner} failed on {job.workload}: {last}") from None
    return {
        "runner": runner,
        "seconds": statistics.mean(step.seconds for step in answer.steps),
        "sampling_seconds": statistics.mean(step.sampling_seconds for step in answer.steps),
        "tokens": statistics.mean(step.tokens for step in answer.steps),
        "peak_bytes": answer.peak_bytes, "versions": dict(answer.versions), "notes": dict(answer.notes),
    }  # fmt: skip


def workload_medians(
    answers: Sequence[Mapping[str, Any]], job: BenchmarkJob, speeds: floor.Speeds, parameters: int = PARAMETERS
) -> WorkloadMedians:
    """Return the medians of one workload's results. Raises ValueError if burnish has none."""
    by_runner: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        by_runner.setdefault(answer["runner"], []).append(answer)
    own = {answer["round"]: answer for answer in by_runner.get("burnish", [])}
    if not own:
        raise ValueError("no answer of burnish's own")

    def median(key: str) -> dict[str, float]:
        return {runner: statistics.median(one[key] for one in results) for runner, results in by_runner.items()}

    def ratios(each: str | None) -> dict[str, float]:
        def cost(one: Mapping[str, Any]) -> float:
            return float(one["seconds"]) / (float(one[each]) if each else 1.0)

        return {
            runner: statistics.median(cost(one) / cost(own[one["round"]]) for one in results if one["round"] in own)
            for runner, results in by_runner.items()
            if runner != "burnish" and any(one["round"] in own for one in results)
        }

    seconds, sampling, tokens = median("seconds"), median("sampling_seconds"), median("tokens")
    work = (parameters, job.prompt_tokens, round(tokens["burnish"]))
    limits = {"sampling": floor.sampling_seconds(*work, job.completions, speeds) / sampling["burnish"]}
    if job.kind == "grpo":
        training = floor.training_seconds(*work, speeds, adapter=job.lora_rank is not None)
        limits["training"] = training / (seconds["burnish"] - sampling["burnish"])
    peak = {runner: round(value) for runner, value in median("peak_bytes").items()}
    return WorkloadMedians(job.workload, seconds, sampling, tokens, peak, ratios(None), ratios("tokens"), limits)


def table(rows: Sequence[WorkloadMedians], results: Mapping[str, Any]) -> str:
    """Return the rows as Markdown, headed by the machine."""
    rates = ", ".join(f"{float(value):.0f} at {rows} rows" for rows, value in results["gflops"].items())
    lines = [
        f"Processor {results['processor']}, {results['threads']} threads; float32 products in GFLOP/s: {rates}.",
        "",
        "| workload | runner | seconds per step | sampling | sampled tokens | tokens/s sampling | peak memory, GB | "
        "times burnish | per token | of the limit: sampling | training |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for runner in row.seconds:
            own = runner == "burnish"
            training = f"{row.limits['training']:.0%}" if own and "training" in row.limits else ""
            lines.append(
                f"| {row.workload} | {runner} | {row.seconds[runner]:.1f} | {row.sampling[runner]:.1f} | "
                f"{row.tokens[runner]:.0f} | {row.tokens[runner] / row.sampling[runner]:.0f} | "
                f"{row.peak[runner] / 1e9:.2f} | {'' if own else f'{row.ratio[runner]:.2f}'} | "
                f"{'' if own else f'{row.token_ratio[runner]:.2f}'} | "
                f"{format(row.limits['sampling'], '.0%') if own else ''} | {training} |"
            )
    return "\n".join(lines) + "\n"


def drawing(rows: Sequence[WorkloadMedians]) -> str:
    """Return an SVG with the seconds per step of every runner as bars."""
    bars = [(row.workload, runner, row.seconds[runner]) for row in rows for runner in row.seconds]
    if not bars:
        return ""
    longest = max(seconds for *_, seconds in bars)
    parts = []
    for index, (work, runner, seconds) in enumerate(bars):
        top, width = 24 + 22 * index, 420 * seconds / longest
        colour = "#2f6f9f" if runner == "burnish" else "#b8b8b8"
        parts.append(f'<text x="150" y="{top + 12}" text-anchor="end">{work}, {runner}</text>')
        parts.append(f'<rect x="158" y="{top}" width="{width:.1f}" height="15" fill="{colour}"/>')
        parts.append(f'<text x="{164 + width:.1f}" y="{top + 12}">{seconds:.1f} s</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="660" height="{34 + 22 * len(bars)}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="158" y="14" font-weight="bold">Seconds per step</text>{"".join(parts)}</svg>\n'
    )


def _write(
    results: Mapping[str, Any], works: Sequence[Workload], jobs: Mapping[tuple[str, bool], BenchmarkJob],
    speeds: floor.Speeds, out: Path,
) -> None:  # fmt: skip
    rows = []
    for work in works:
        answers = [answer for answer in results["answers"] if answer["workload"] == work.name]
        if any(answer["runner"] == "burnish" for answer in answers):
            rows.append(workload_medians(answers, jobs[work.name, False], speeds))
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(table(rows, results), encoding="utf-8")
    (out / "bench.svg").write_text(drawing(rows), encoding="utf-8")
