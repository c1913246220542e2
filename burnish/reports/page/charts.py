"""The report's charts as plotly figures: plain dicts, because only plotly.js draws them.

Colours are names such as ``$blue``, which the page's script replaces by those of light mode, dark mode and print. Lines
that share a chart also differ in dash or marker. No text from the run enters a figure, because plotly interprets tags;
the page sets and escapes the titles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.reports.wording import finite, printable, title

Row = Mapping[str, Any]
Trace = dict[str, Any]

MAX_POINTS = 800
_FROM_ZERO = {"yaxis": {"rangemode": "tozero"}}
_SHARE = {"yaxis": {"rangemode": "tozero", "tickformat": ".0%"}}
_LINES = (("$blue", "solid", "circle"), ("$orange", "dash", "square"))


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its title and note."""

    title: str
    figure: dict[str, Any]
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class ChartSection:
    """A titled group of charts."""

    title: str
    charts: list[Chart]
    note: str = ""
    folded: bool = False


def thin_rows(rows: Sequence[Row], points: int = MAX_POINTS) -> list[Row]:
    """Return about ``points`` evenly spaced rows, plus the last row and every row with a held-out measurement."""
    every = -(-len(rows) // points)
    if every <= 1:
        return list(rows)
    return [
        row
        for index, row in enumerate(rows, start=1)
        if index % every == 1 or index == len(rows) or any(key.startswith("held_out/") for key in row)
    ]


def chart_sections(
    rows: Sequence[Row], evaluation: Mapping[str, Any] | None = None, kept: int | None = None, *,
    supervised: bool = False,
) -> list[ChartSection]:  # fmt: skip
    """Return every chart that the rows have data for; unknown metrics come last, in a folded section.

    ``kept`` is the step of the model that was evaluated after training, if it is not the last step.
    """
    rows = thin_rows(rows)
    if not rows:
        return []
    used = {"step"}
    groups = [
        ChartSection("Learning", list(_learning(rows, evaluation or {}, used)) if supervised else []),
        ChartSection("Reward", list(_reward(rows, evaluation or {}, used, kept))),
        ChartSection("Policy", list(_policy(rows, used))),
        ChartSection("Text", list(_text(rows, used))),
        ChartSection(
            "Optimisation",
            list(_optimisation(rows, used)),
            ""
            if supervised
            else "The value of a policy-gradient loss says nothing about progress, because its data change with the policy "
            "at every step; look only for spikes.",
        ),
        ChartSection("Cost", list(_cost(rows, used))),
    ]
    rest = sorted({key for row in rows for key, value in row.items() if finite(value) is not None} - used)
    others = [chart for key in rest for chart in _simple(rows, key, key, used)]
    groups.append(ChartSection("Other metrics", others, folded=True))
    return [group for group in groups if group.charts]


_LEARNT = {
    "loss": ("Loss", "Mean over a step's examples, which differ from step to step."),
    "preference/accuracy": ("Preference accuracy", "Share of pairs whose preferred answer comes out ahead."),
    "preference/margin": ("Preference margin", "Mean difference between the preferred and the rejected answer."),
}


def _learning(rows: Sequence[Row], evaluation: Mapping[str, Any], used: set[str]) -> Iterator[Chart]:
    """Yield the curves of a supervised run: training beside the held-out measurement of the same quantity."""
    same = {"loss": "truth_nll" if "truth_nll" in evaluation or _has(rows, "held_out/truth_nll") else "preference_nll"}
    for key, (name, note) in _LEARNT.items():
        metric = same.get(key, key.replace("/", "_"))
        traces = [_line(rows, key, "training"), _held_out(rows, evaluation, metric, None)]
        used |= {key, f"held_out/{metric}"}
        if traces[1]["x"]:
            note += " Diamonds are held-out examples."
        if _has(rows, key):
            shown = traces if traces[1]["x"] else traces[:1]
            yield Chart(name, _figure(shown, height=320 if key == "loss" else 210), note, wide=key == "loss")
    for metric in sorted(evaluation):
        trace = _held_out(rows, evaluation, metric, None)
        if f"held_out/{metric}" not in used and len(trace["x"]) > 1:
            used.add(f"held_out/{metric}")
            yield Chart(f"Held-out {title(metric)}", _figure([{**trace, "mode": "lines+markers"}]))


def _reward(rows: Sequence[Row], evaluation: Mapping[str, Any], used: set[str], kept: int | None) -> Iterator[Chart]:
    if _has(rows, "reward/mean"):
        traces = _band(rows, "reward/mean", "reward/std", "training")
        note = "Mean over the completions of a step; the band is one standard deviation."
        held_out = _held_out(rows, evaluation, "reward", kept)
        if held_out["x"]:
            traces.append(held_out)
            note += " Diamonds are held-out prompts."
        yield Chart("Reward", _figure(traces, height=320), note, wide=True)
        used |= {"reward/mean", "reward/std", "held_out/reward"}
    for key, part in _unused(rows, "reward/", used):
        traces = [_line(rows, key, "training")]
        held_out = _held_out(rows, evaluation, key, kept)
        if held_out["x"]:
            traces.append(held_out)
        used |= {key, f"held_out/{key}"}
        if _has(rows, key):
            yield Chart(f"Reward part: {printable(part)}", _figure(traces), "Unweighted.")
    for key, part in _unused(rows, "gate/", used):
        note = "Share of completions that passed; the others get no credit from the other parts."
        yield from _simple(rows, key, f"Gate: {part}", used, note, layout=_SHARE)
    for key, part in _unused(rows, "weight/", used):
        yield from _simple(rows, key, f"Weight: {part}", used, "Follows its schedule.")
    for key, metric in _unused(rows, "held_out/", used):
        used.add(key)
        trace = _held_out(rows, evaluation, metric, kept)
        if trace["x"]:
            name = title(metric) if metric.startswith(("metric/", "set/")) else printable(metric)
            yield Chart(f"Held-out {name}", _figure([{**trace, "mode": "lines+markers"}]))


def _unused(rows: Sequence[Row], prefix: str, used: set[str]) -> list[tuple[str, str]]:
    keys = sorted({key for row in rows for key in row if key.startswith(prefix)} - used)
    return [(key, key.removeprefix(prefix)) for key in keys]


def _policy(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    yield from _simple(rows, "kl", "KL to the reference", used, "Distance of the policy from its reference.")
    yield from _simple(rows, "entropy", "Entropy", used, "Nats per token; near zero, the policy stops exploring.")
    note = "KL between sampler and trainer with the same weights; should be close to zero."
    yield from _simple(rows, "mismatch_kl", "Mismatch KL", used, note, layout=_FROM_ZERO)
    yield from _simple(rows, "clip_fraction", "Clipped fraction", used, layout=_FROM_ZERO)


def _text(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    if _has(rows, "length/mean"):
        note = "Mean; the band is one standard deviation."
        yield Chart("Length in tokens", _figure(_band(rows, "length/mean", "length/std", "length")), note)
    yield from _simple(rows, "truncated", "Truncated fraction", used, "Cut off at the token limit.", layout=_SHARE)
    names = {"diversity/distinct_1": "distinct-1", "diversity/distinct_2": "distinct-2"}
    keys = [key for key in names if _has(rows, key)]
    if keys:
        traces = [_line(rows, key, names[key], index) for index, key in enumerate(keys)]
        note = "Share of distinct words and of distinct word pairs; lower means blander text."
        yield Chart("Diversity", _figure(traces), note)
    yield from _simple(rows, "diversity/longest_repeat", "Longest repeat", used, layout=_FROM_ZERO)
    used |= {"length/mean", "length/std", *keys}


def _optimisation(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    yield from _simple(rows, "grad_norm", "Gradient norm", used, "Before clipping.", layout=_FROM_ZERO)
    if "loss" not in used:
        yield from _simple(rows, "loss", "Loss", used)
    yield from _simple(rows, "learning_rate", "Learning rate", used, layout=_FROM_ZERO)


def _cost(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    phases = [phase for phase in ("generate", "score", "update") if _has(rows, f"time/{phase}")]
    if phases:
        bars = [_bar(rows, phase, [_value(row, f"time/{phase}") for row in rows], i) for i, phase in enumerate(phases)]
        if _has(rows, "time/step"):
            known = [sum(_value(row, f"time/{phase}") or 0.0 for phase in phases) for row in rows]
            total = [_value(row, "time/step") or 0.0 for row in rows]
            other = [round(max(0.0, step - part), 3) for step, part in zip(total, known, strict=True)]
            bars.append(_bar(rows, "other", other, 3))
        used |= {"time/step", *(f"time/{phase}" for phase in phases)}
        layout = {"barmode": "stack", "bargap": 0.15}
        yield Chart("Seconds per step", _figure(bars, layout=layout, legend=True))
    yield from _simple(rows, "tokens_per_second", "Tokens per second", used, layout=_FROM_ZERO)
    yield from _simple(rows, "tokens", "Tokens per step", used, layout=_FROM_ZERO)
    yield from _simple(rows, "memory/peak", "Peak memory in MB", used, layout=_FROM_ZERO)


def _simple(
    rows: Sequence[Row], key: str, title: str, used: set[str], note: str = "", layout: Mapping[str, Any] | None = None
) -> Iterator[Chart]:
    used.add(key)
    if _has(rows, key):
        yield Chart(printable(title), _figure([_line(rows, key, "")], layout=layout), note)


def _value(row: Row, key: str) -> float | None:
    value = finite(row.get(key))
    # Seven significant digits are finer than a pixel, and rounding keeps the page small.
    return None if value is None else float(f"{value:.7g}")


def _has(rows: Sequence[Row], key: str) -> bool:
    return any(finite(row.get(key)) is not None for row in rows)


def _steps(rows: Sequence[Row]) -> list[int]:
    return [int(row["step"]) for row in rows]


def _line(rows: Sequence[Row], key: str, name: str, index: int = 0) -> Trace:
    colour, dash, symbol = _LINES[index]
    # Markers show isolated points between gaps. Many markers would hide the line, so long runs use dashes instead.
    marked = len(rows) <= 60
    return {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "x": _steps(rows),
        "y": [_value(row, key) for row in rows],
        "name": name,
        "line": {"color": colour, "dash": "solid" if marked else dash, "width": 2},
        "marker": {"size": 4 if symbol == "circle" else 6, "color": colour, "symbol": symbol},
    }


def _band(rows: Sequence[Row], mean: str, deviation: str, name: str) -> list[Trace]:
    line = _line(rows, mean, name)
    pairs = [(finite(row.get(mean)), finite(row.get(deviation))) for row in rows]
    low, high = (
        [None if m is None or d is None else float(f"{m + sign * d:.7g}") for m, d in pairs] for sign in (-1, 1)
    )
    if not any(value is not None for value in high):
        return [line]
    edge = {
        "type": "scatter", "mode": "lines", "x": _steps(rows), "line": {"width": 0}, "hoverinfo": "skip",
        "showlegend": False,
    }  # fmt: skip
    fill = {"fill": "tonexty", "fillcolor": "$band"}
    return [{**edge, "y": low, "name": "− std"}, {**edge, "y": high, "name": "± std", **fill}, line]


def _held_out(rows: Sequence[Row], evaluation: Mapping[str, Any], metric: str, kept: int | None) -> Trace:
    """Held-out values measured during training, with those of the evaluation before and after it."""
    points = {int(row["step"]): value for row in rows if (value := _value(row, f"held_out/{metric}")) is not None}
    entry = evaluation.get(metric)
    if isinstance(entry, Mapping):
        ends = ((0, _value(entry, "before")), (_steps(rows)[-1] if kept is None else kept, _value(entry, "after")))
        points |= {step: value for step, value in ends if value is not None and step not in points}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": sorted(points),
        "y": [points[step] for step in sorted(points)],
        "name": "held-out",
        "line": {"color": "$orange", "width": 1.5, "dash": "dash"},
        "marker": {"color": "$orange", "size": 9, "symbol": "diamond"},
        "cliponaxis": False,
    }


def _bar(rows: Sequence[Row], name: str, values: Sequence[float | None], index: int) -> Trace:
    marker = {"color": ("$blue", "$orange", "$green", "$muted")[index], "line": {"width": 0}}
    return {"type": "bar", "x": _steps(rows), "y": list(values), "name": name, "marker": marker}


def _figure(
    traces: list[Trace], *, height: int = 210, layout: Mapping[str, Any] | None = None, legend: bool | None = None
) -> dict[str, Any]:
    named = [trace for trace in traces if trace.get("showlegend", True)]
    legend = len(named) > 1 if legend is None else legend
    return {"data": traces, "layout": {"height": height, "showlegend": legend, **(layout or {})}}
