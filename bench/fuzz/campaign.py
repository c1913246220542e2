"""A campaign: workers that run batches of all kinds in turn until time is up, and the table of their results."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.fuzz.batch import Batch, Failure, run_batch
from bench.fuzz.case import Case
from bench.fuzz.kinds import KINDS
from bench.fuzz.server import Server
from bench.fuzz.stock import build

BATCH = 25
"""Cases of a batch."""
WARM = (
    "burnish.api", "burnish.cli.app", "burnish.supervised.verbs", "burnish.reports.terminal.tables",
    "burnish.reports.page.html", "burnish.reports.model_card", "burnish.run.proof", "burnish.backends.export",
    "burnish.scoring", "burnish.drafting.recipe", "burnish.safety.filter.content_filter",
    "burnish.supervised.data_check",
    "burnish.benchmark.model_check", "jinja2", "plotly.offline", "rich.console", "rich.table", "sacrebleu.metrics",
    "scipy.stats",
    "torch", "torch._dynamo", "transformers", "peft", "tomli_w", "pyarrow.parquet", "pyarrow.csv",
)  # fmt: skip
"""Modules that the server imports, so that no child has to."""
FORKS = multiprocessing.get_context("fork")
FAULTS = ("traceback", "outside write", "silent acceptance", "signal", "limit", "unexplained")
COLUMNS = ("cases", "refused", "accepted", *FAULTS)


def warm_up() -> None:
    """Import what the verbs import, without starting a thread."""
    import torch

    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    # Children share these pages as long as nobody collects garbage in them.
    gc.collect()
    gc.freeze()


@contextmanager
def stopped(running: dict[Connection, Any]) -> Iterator[None]:
    """End the workers that are left at the end of a block."""
    try:
        yield
    except EOFError:
        raise SystemExit("a worker failed: its error is above") from None
    finally:
        for process in running.values():
            process.terminate()
            process.join()


class Campaign:
    """Runs batches in workers and keeps what came of them.

    Args:
        scratch: folder for the workers' files.
        out: folder for the cases that fail.
        seed: decides all cases.
    """

    def __init__(self, scratch: Path, out: Path, seed: int) -> None:
        self.scratch, self.out, self.seed = scratch, out, seed
        self.counts: dict[str, Counter[str]] = {}
        self.faults: Counter[str] = Counter()
        self.failures: dict[str, Path] = {}
        """Signature -> the folder of a case that has the fault."""
        self.seconds = 0.0
        self.work = 0.0
        """Processor time of the workers and their children, in seconds."""
        warm_up()
        (scratch / "home" / "burnish").mkdir(parents=True)
        server = Server(scratch / "stock", scratch / "home", {})
        self.stock = build(server)
        self._home = server.place.home

    def server(self, name: str) -> Server:
        """Return a server with a folder of its own."""
        return Server(self.scratch / name, self._home, self.stock.expected)

    def repeat(self, case: Case) -> int:
        """Run a case again and print what came of it. Returns 1 if it is a fault."""
        outcome = self.server("repeat").run(case)
        print(outcome.err, end="")
        print(f"statuses {list(outcome.statuses)}; {outcome.fault.signature if outcome.fault else 'no fault'}")
        return int(outcome.fault is not None)

    def run(self, kinds: Sequence[str] | None, *, minutes: float, cases: int, workers: int) -> None:
        """Run batches of the kinds in turn, in so many workers, until time is up or each kind has had its cases."""
        names = list(kinds or KINDS)
        begin = time.monotonic()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = usage.ru_utime + usage.ru_stime
        jobs = self._jobs(names, begin + minutes * 60, cases)
        known: set[str] = set()
        running: dict[Connection, Any] = {}
        for number in range(workers):
            here, there = FORKS.Pipe()
            process = FORKS.Process(target=self._work, args=(there, f"worker-{number}"))
            process.start()
            running[here] = process
        with suppress(KeyboardInterrupt), stopped(running):
            for connection in list(running):
                self._give(connection, jobs, known, running)
            while running:
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    self._take(ready.recv(), known)
                    self._give(ready, jobs, known, running)
                    self._show(time.monotonic() - begin)
        self.seconds = time.monotonic() - begin
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.work = usage.ru_utime + usage.ru_stime - worked

    def _jobs(self, names: Sequence[str], end: float, cases: int) -> Iterator[tuple[str, int, int]]:
        for number in count():
            for name in names:
                size = min(BATCH, cases - number * BATCH) if cases else BATCH
                if time.monotonic() > end or size <= 0:
                    return
                yield name, number, size

    def _give(
        self,
        connection: Connection,
        jobs: Iterator[tuple[str, int, int]],
        known: set[str],
        running: dict[Connection, Any],
    ) -> None:
        job = next(jobs, None)
        connection.send(job and (*job, known))
        if job is None:
            running.pop(connection).join()

    def _work(self, connection: Connection, name: str) -> None:
        """Run batches until there are no more."""
        server = self.server(name)
        strategies = {kind: make(self.stock) for kind, make in KINDS.items()}
        while job := connection.recv():
            kind, number, size, known = job
            connection.send(
                run_batch(kind, number, strategies[kind], server.run, start=self.seed, size=size, known=known)
            )

    def _take(self, batch: Batch, known: set[str]) -> None:
        self.counts.setdefault(batch.kind, Counter()).update(batch.counts)
        self.faults.update(batch.faults)
        for failure in batch.failures:
            if failure.fault.signature not in known:
                known.add(failure.fault.signature)
                self.failures[failure.fault.signature] = self._save(failure)

    def _save(self, failure: Failure) -> Path:
        folder = self.out / f"seed-{self.seed}" / f"{failure.case.kind}-{failure.case.digest}"
        failure.case.save(folder)
        text = f"{failure.fault.signature}\nburnish {' '.join(failure.fault.command)}\n\n{failure.err}"
        (folder / "fault.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        shown = f"\n{failure.fault.signature}\n  {'; '.join(failure.case.changes)}\n  {folder}"
        print(shown.encode("ascii", "backslashreplace").decode(), flush=True)
        return folder

    def _show(self, seconds: float) -> None:
        done = {kind: counts["cases"] for kind, counts in self.counts.items()}
        text = ", ".join(f"{number} {kind}" for kind, number in done.items())
        print(f"\r{seconds:5.0f} s  {text}, {len(self.failures)} faults ", end="", file=sys.stderr, flush=True)

    def report(self) -> str:
        """Return a table: a row for each kind, then the faults with the commands that repeat them."""
        rows = [["kind", *COLUMNS]]
        total: Counter[str] = Counter()
        for kind, counts in self.counts.items():
            total.update(counts)
            rows.append([kind, *(str(counts[name]) for name in COLUMNS)])
        rows.append(["all", *(str(total[name]) for name in COLUMNS)])
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
        lines = ["", *("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)]
        rate, work = total["cases"] / max(self.seconds, 1e-9), self.work / max(total["cases"], 1)
        lines.append(
            f"seed {self.seed}, {self.seconds:.0f} s, {total['commands']} commands, {rate:.1f} cases a second, "
            f"{work:.2f} s of processor time a case"
        )
        for signature, folder in sorted(self.failures.items()):
            lines += [f"{self.faults[signature]:5}  {signature}", f"       python -m bench.fuzz --repeat {folder}"]
        return "\n".join(lines)
