"""The live panel's looks."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from burnish.reports.terminal.run_state import RunState, in_bytes, sparkline, trend
from burnish.reports.wording import amount, duration, number, printable, short

Phase = tuple[str, int, int] | None


def panel(state: RunState, phase: Phase, warning: str, warnings: int) -> RenderableType:
    """Steps, reward with its trend, the step's main numbers, the phase under way, the latest warning."""
    rows: list[RenderableType] = []
    if state.steps:
        rows.append(_bar(f"step {state.done}/{state.steps}", state.done, state.steps, _left(state)))
        rows += [_rewards(state), _numbers(state)]
    if phase is not None:
        name, done, total = phase
        rows.append(_bar(printable(name), done, total, amount(done, total, in_bytes=in_bytes(name))))
    if warning:
        earlier = f" (and {warnings - 1} earlier)" if warnings > 1 else ""
        rows.append(Text(f"warning: {warning}{earlier}", style="yellow", overflow="ellipsis", no_wrap=True))
    title = Text(f"burnish {state.name}".rstrip(), style="bold")
    return Panel(Group(*rows), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _left(state: RunState) -> str:
    if state.done >= state.steps:
        return "done"
    return f"{duration(state.time_left)} left" if state.seconds else "starting"


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


def _rewards(state: RunState) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    word, metric = state.aim
    line.append(f"{word} ", style="dim").append(short(state.row.get(metric)), style="bold")
    if state.rewards:
        arrow = trend(state.rewards)
        line.append(f"  {sparkline(state.rewards)} ", style="cyan")
        line.append({"↗": "↗ rising", "↘": "↘ falling"}.get(arrow, "→ no clear trend"))
    if state.held_out:
        step, value = state.held_out[-1]
        line.append("   held-out ", style="dim").append(f"{short(value)} (step {step})")
    return line


def _numbers(state: RunState) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    shown = (("kl", "KL"), ("entropy", "entropy"), ("length/mean", "length"), ("tokens_per_second", "tokens/s"))
    for key, word in shown:
        value = number(state.row.get(key))
        text = short(value) if value is None or key != "tokens_per_second" else f"{value:.0f}"
        line.append(f"{word} ", style="dim").append(f"{text}   ")
    return line
