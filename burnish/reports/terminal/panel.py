"""The live panel, drawn with Rich."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from burnish.reports.terminal.run_state import RunState, in_bytes, sparkline, trend
from burnish.reports.wording import amount, duration, finite, printable, short

Phase = tuple[str, int, int] | None


def panel(state: RunState, phase: Phase, warning: str, warnings: int) -> RenderableType:
    """Return the panel: steps, reward with its trend, main metrics, current phase and latest warning."""
    rows: list[RenderableType] = []
    if state.steps:
        rows.append(_bar(f"step {state.done}/{state.steps}", state.done, state.steps, _time_left(state)))
        rows += [_objective(state), _metrics(state)]
    if phase is not None:
        name, done, total = phase
        rows.append(_bar(printable(name), done, total, amount(done, total, in_bytes=in_bytes(name))))
    if warning:
        earlier = f" (and {warnings - 1} earlier)" if warnings > 1 else ""
        rows.append(Text(f"warning: {warning}{earlier}", style="yellow", overflow="ellipsis", no_wrap=True))
    title = Text(f"burnish {state.name}".rstrip(), style="bold")
    return Panel(Group(*rows), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _time_left(state: RunState) -> str:
    if state.done >= state.steps:
        return "done"
    return f"{duration(state.time_left)} left" if state.time_left is not None else "starting"


def _bar(label: str, done: int, total: int, right: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(min_width=10, max_width=36, no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1)
    grid.add_column(min_width=10, justify="right", no_wrap=True)
    bar = ProgressBar(
        total=max(total, 1), completed=done, pulse=total <= 0, complete_style="cyan", finished_style="green"
    )
    grid.add_row(Text(label), bar, Text(right))
    return grid


def _objective(state: RunState) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    word, metric = state.objective
    line.append(f"{word} ", style="dim").append(short(state.row.get(metric)), style="bold")
    if state.rewards:
        line.append(f"  {sparkline(state.rewards)} ", style="cyan")
        line.append({"↗": "↗ rising", "↘": "↘ falling"}.get(trend(state.rewards), "→ no clear trend"))
    return line


def _metrics(state: RunState) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    shown = (("kl", "KL"), ("entropy", "entropy"), ("length/mean", "length"), ("tokens_per_second", "tokens/s"))
    for key, word in shown:
        value = finite(state.row.get(key))
        text = short(value) if value is None or key != "tokens_per_second" else f"{value:.0f}"
        line.append(f"{word} ", style="dim").append(f"{text}   ")
    line.append(state.others, style="yellow")
    return line
