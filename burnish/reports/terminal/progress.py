"""Observers that print the progress of a run.

Progress goes to standard error, so that standard output has only results; the lines of ``JsonProgress`` are the result.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from burnish.protocols import Observer
from burnish.reports.terminal.run_state import RunState, in_bytes
from burnish.reports.wording import amount, duration, finite, printable, short

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_PHASE_LINES = 10


def make_observer(
    *, quiet: bool = False, json: bool = False, live: bool = True, console: Console | None = None
) -> Observer:
    """Return the observer for the output; with ``quiet``, also with ``json``, only the verb's result reaches it.

    Without ``live``, lines are printed on a terminal, too, and rich is not imported, which is slow.
    """
    if quiet:
        return QuietProgress()
    if json:
        return JsonProgress()
    if not live:
        return PlainProgress()
    from rich.console import Console

    console = console or Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console)
    return PlainProgress(console.file)


class _Lines:
    """A writer of whole lines that never stops a run: a closed pipe or a full disk only ends the output."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream: IO[str] | None = stream

    def write(self, line: str) -> None:
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(line.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream has been closed
            self._stream = None


class QuietProgress:
    """Warnings only, on standard error."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._lines = _Lines(stream or sys.stderr)

    def message(self, text: str, *, level: str = "info") -> None:
        if level == "warning":
            self._lines.write(f"warning: {printable(text)}")

    def start(self, *, name: str, steps: int, first_step: int) -> None: ...

    def step(self, metrics: Mapping[str, Any]) -> None: ...

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def finish(self) -> None: ...


class PlainProgress:
    """One line per step and at most ten lines per phase, for logs, pipes and terminals without cursor movement."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._lines = _Lines(stream or sys.stderr)
        self._state = RunState()
        self._phase, self._done, self._shown = "", 0, -1

    def message(self, text: str, *, level: str = "info") -> None:
        self._lines.write(("warning: " if level == "warning" else "") + printable(text))

    def start(self, *, name: str, steps: int, first_step: int) -> None:
        self._state.start(name, steps, first_step)
        resumed = f", from step {first_step}" if first_step > 1 else ""
        self._lines.write(f"{self._state.name}: {steps} steps{resumed}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        state = self._state
        state.update(metrics)
        parts = [f"step {state.done:>{len(str(state.steps))}}/{state.steps}"]
        word, metric = state.objective
        parts.append(f"{word} {short(metrics.get(metric))}")
        parts += [f"{word} {short(metrics[key])}" for key, word in _SHOWN if finite(metrics.get(key)) is not None]
        if finite(metrics.get("tokens_per_second")) is not None:
            parts.append(f"{metrics['tokens_per_second']:.0f} tokens/s")
        if state.done < state.steps or (state.time_left or 0) >= 1:
            parts.append(f"{duration(state.time_left)} left")
        if state.others:
            parts.append(state.others)
        self._lines.write("  ".join(parts))

    def progress(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase or done < self._done:
            self._phase, self._shown = phase, 0 if total > 0 else -1
        self._done = done
        share = min(_PHASE_LINES, done * _PHASE_LINES // total) if total > 0 else 0
        if share > self._shown:
            self._shown = share
            self._lines.write(f"{printable(phase)} {amount(done, total, in_bytes=in_bytes(phase))}")

    def finish(self) -> None: ...


class JsonProgress:
    """One JSON object per line on standard output, with an ``event``; numbers that are not finite become null."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._lines = _Lines(stream or sys.stdout)

    def message(self, text: str, *, level: str = "info") -> None:
        self._write("message", level=level, text=str(text))

    def start(self, *, name: str, steps: int, first_step: int) -> None:
        self._write("start", name=name, steps=steps, first_step=first_step)

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._write("step", metrics=dict(metrics))

    def progress(self, phase: str, done: int, total: int) -> None:
        self._write("progress", phase=phase, done=done, total=total)

    def finish(self) -> None:
        self._write("finish")

    def _write(self, event: str, **fields: Any) -> None:
        # ASCII output does not depend on the encoding of the pipe, and a lone surrogate in model text stays an escape.
        self._lines.write(json_module.dumps({"event": event, **_jsonable(fields)}, allow_nan=False, default=str))


class LiveProgress:
    """A panel that is redrawn in place below the messages; ``finish`` restores the cursor, however the run ends."""

    def __init__(self, console: Console | None = None, *, auto_refresh: bool = True) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True)
        self._auto_refresh = auto_refresh
        self._live: Live | None = None
        self._state = RunState()
        self._phase: tuple[str, int, int] | None = None
        self._warning, self._warnings = "", 0

    def message(self, text: str, *, level: str = "info") -> None:
        from rich.text import Text

        if level == "warning":
            self._warning, self._warnings = printable(text), self._warnings + 1
            self.console.print(Text.assemble(("warning: ", "bold yellow"), printable(text)))
        else:
            self.console.print(Text(printable(text)))
        self._refresh()

    def start(self, *, name: str, steps: int, first_step: int) -> None:
        self._state.start(name, steps, first_step)
        self._phase = None
        self._show()

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._state.update(metrics)
        self._phase = None
        self._show()

    def progress(self, phase: str, done: int, total: int) -> None:
        self._phase = (phase, done, total)
        self._show()

    def finish(self) -> None:
        self._phase = None
        if self._live is not None:
            self._refresh()
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(
                console=self.console,
                get_renderable=self.render,
                auto_refresh=self._auto_refresh,
                refresh_per_second=4,
                # Before the run starts, the panel shows only a download, which need not stay on the screen.
                transient=not self._state.steps,
            )
            self._live.start()
        if self._state.steps:
            self._live.transient = False
        self._refresh()

    def _refresh(self) -> None:
        # The refresh thread draws the next frame; drawing here too would slow down short steps.
        if self._live is not None and not self._auto_refresh:
            self._live.refresh()

    def render(self) -> RenderableType:
        """Return the current panel."""
        from burnish.reports.terminal.panel import panel

        return panel(self._state, self._phase, self._warning, self._warnings)


_SHOWN = (("kl", "kl"), ("entropy", "entropy"), ("length/mean", "length"))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return finite(value) if isinstance(value, float) else value


@contextmanager
def watching(observer: Observer | None) -> Iterator[Observer]:
    """Yield the observer, or progress on standard error if there is none, and call its ``finish`` at the end."""
    watcher = observer or make_observer()
    try:
        yield watcher
    finally:
        watcher.finish()
