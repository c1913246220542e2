"""The report's curves as plotly figures: plain dicts, since only plotly.js draws them.

Colours are names such as ``$blue`` that the page's script replaces from its style sheet, so that one figure serves
light, dark and print. The hues are told apart by colour-blind readers, and lines that share a chart differ in dash or
marker as well. No text of the run enters a figure, since plotly reads tags in it; titles are set by the page, escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.reports.wording import number, printable, title

Row = Mapping[str, Any]
Trace = dict[str, Any]

MAX_POINTS = 800
_FROM_ZERO = {"yaxis": {"rangemode": "tozero"}}
_SHARE = {"yaxis": {"rangemode": "tozero", "tickformat": ".0%"}}
_LINES = (("$blue", "solid", "circle"), ("$orange", "dash", "square"))


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure with its words."""

    title: str
    figure: dict[str, Any]
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Charts that are read together."""

    title: str
    charts: list[Chart]
    note: str = ""
    folded: bool = False


def thinned(rows: Sequence[Row], points: int = MAX_POINTS) -> list[Row]:
    """At most about ``points`` rows, evenly taken, with the last one and every held-out measurement kept."""
    every = -(-len(rows) // points)
    if every <= 1:
        return list(rows)
    last = len(rows) - 1
    return [
        row
        for index, row in enumerate(rows)
        if index % every == 0 or index == last or any(key.startswith("held_out/") for key in row)
    ]


def sections(
    rows: Sequence[Row], evaluation: Mapping[str, Any] | None = None, kept: int | None = None
) -> list[Section]:
    """All curves that the rows allow, in the order of reading; keys that nothing here knows come last, folded away.

    Args:
        kept: step of the model that was measured after training, where that is not the last.
    """
    rows = thinned(rows)
    if not rows:
        return []
    used = {"step"}
    found = [
        Section("Reward", list(_reward(rows, evaluation or {}, used, kept))),
        Section("Policy", list(_policy(rows, used))),
        Section("Text", list(_text(rows, used))),
        Section(
            "Optimisation",
            list(_optimisation(rows, used)),
            "The value of a policy-gradient loss carries no information about progress, because its data change with "
            "the policy at every step; look here only for spikes.",
        ),
        Section("Cost", list(_cost(rows, used))),
    ]
    rest = sorted({key for row in rows for key, value in row.items() if number(value) is not None} - used)
    others = [chart for key in rest for chart in _simple(rows, key, key, used)]
    found.append(Section("Other metrics", others, folded=True))
    return [section for section in found if section.charts]


def _reward(rows: Sequence[Row], evaluation: Mapping[str, Any], used: set[str], kept: int | None) -> Iterator[Chart]:
    if _has(rows, "reward/mean"):
        traces = _band(rows, "reward/mean", "reward/std", "training")
        held_out = _held_out(rows, evaluation, "reward", kept)
        if held_out["x"]:
            traces.append(held_out)
        note = "Mean over the completions of a step, with a band of one standard deviation among them."
        if held_out["x"]:
            note += " Diamonds: held-out prompts."
        yield Chart("Reward", _figure(traces, height=320), note, wide=True)
        used |= {"reward/mean", "reward/std", "held_out/reward"}
    parts = sorted({key for row in rows for key in row if key.startswith("reward/")} - used)
    for key in parts:
        part = key.removeprefix("reward/")
        traces = [_line(rows, key, "training")]
        held_out = _held_out(rows, evaluation, key, kept)
        if held_out["x"]:
            traces.append(held_out)
        used |= {key, f"held_out/{key}"}
        if _has(rows, key):
            yield Chart(f"Part: {printable(part)}", _figure(traces), "Before its weight.")
    keys = sorted({key for row in rows for key in row})
    for key in (key for key in keys if key.startswith("gate/")):
        note = "Share of completions that reached it; the others had no credit from other parts."
        yield from _simple(rows, key, f"Gate: {key.removeprefix('gate/')}", used, note, layout=_SHARE)
    for key in (key for key in keys if key.startswith("weight/")):
        yield from _simple(rows, key, f"Weight: {key.removeprefix('weight/')}", used, "By its schedule.")
    for key in sorted({key for row in rows for key in row if key.startswith("held_out/")} - used):
        used.add(key)
        metric = key.removeprefix("held_out/")
        trace = _held_out(rows, evaluation, metric, kept)
        if trace["x"]:
            name = title(metric) if metric.startswith("metric/") else printable(metric)
            yield Chart(f"Held-out {name}", _figure([{**trace, "mode": "lines+markers"}]))


def _policy(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    yield from _simple(rows, "kl", "KL to the reference", used, "How far the policy has moved from where it started.")
    yield from _simple(rows, "entropy", "Entropy", used, "Nats a token; towards zero the policy stops exploring.")
    note = "Sampler against trainer on the same weights; about zero when all is well."
    yield from _simple(rows, "mismatch_kl", "Mismatch KL", used, note, layout=_FROM_ZERO)
    yield from _simple(rows, "clip_fraction", "Clipped share", used, layout=_FROM_ZERO)


def _text(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    if _has(rows, "length/mean"):
        note = "Mean with a band of one standard deviation."
        yield Chart("Length in tokens", _figure(_band(rows, "length/mean", "length/std", "length")), note)
    yield from _simple(rows, "truncated", "Truncated share", used, "Cut off at the token limit.", layout=_SHARE)
    keys = [key for key in ("diversity/distinct_1", "diversity/distinct_2") if _has(rows, key)]
    if keys:
        names = {"diversity/distinct_1": "distinct-1", "diversity/distinct_2": "distinct-2"}
        traces = [_line(rows, key, names[key], index) for index, key in enumerate(keys)]
        note = "Share of different words and of different word pairs; falling means blander."
        yield Chart("Diversity", _figure(traces), note)
    yield from _simple(rows, "diversity/longest_repeat", "Longest repeat", used, layout=_FROM_ZERO)
    used |= {"length/mean", "length/std", *keys}


def _optimisation(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    yield from _simple(rows, "grad_norm", "Gradient norm", used, "Before clipping.", layout=_FROM_ZERO)
    yield from _simple(rows, "loss", "Loss", used)
    yield from _simple(rows, "learning_rate", "Learning rate", used, layout=_FROM_ZERO)


def _cost(rows: Sequence[Row], used: set[str]) -> Iterator[Chart]:
    phases = [phase for phase in ("generate", "score", "update") if _has(rows, f"time/{phase}")]
    if phases:
        bars = [_bar(rows, phase, [_value(row, f"time/{phase}") for row in rows], i) for i, phase in enumerate(phases)]
        if _has(rows, "time/step"):
            named = [sum(_value(row, f"time/{phase}") or 0.0 for phase in phases) for row in rows]
            whole = [_value(row, "time/step") or 0.0 for row in rows]
            rest = [round(max(0.0, step - known), 3) for step, known in zip(whole, named, strict=True)]
            bars.append(_bar(rows, "rest", rest, 3))
        used |= {"time/step", *(f"time/{phase}" for phase in phases)}
        layout = {"barmode": "stack", "bargap": 0.15}
        yield Chart("Seconds a step", _figure(bars, layout=layout, legend=True))
    yield from _simple(rows, "tokens_per_second", "Tokens per second", used, layout=_FROM_ZERO)
    yield from _simple(rows, "tokens", "Tokens a step", used, layout=_FROM_ZERO)
    yield from _simple(rows, "memory/peak", "Peak memory in MB", used, layout=_FROM_ZERO)


def _simple(
    rows: Sequence[Row], key: str, title: str, used: set[str], note: str = "", layout: Mapping[str, Any] | None = None
) -> Iterator[Chart]:
    used.add(key)
    if _has(rows, key):
        yield Chart(printable(title), _figure([_line(rows, key, "")], layout=layout), note)


def _value(row: Row, key: str) -> float | None:
    value = number(row.get(key))
    # Seven significant digits are more than a pixel can show, and the page stays small.
    return None if value is None else float(f"{value:.7g}")


def _has(rows: Sequence[Row], key: str) -> bool:
    return any(number(row.get(key)) is not None for row in rows)


def _steps(rows: Sequence[Row]) -> list[int]:
    return [int(row["step"]) for row in rows]


def _line(rows: Sequence[Row], key: str, name: str, index: int = 0) -> Trace:
    colour, dash, symbol = _LINES[index]
    # Markers show single points between gaps; among many they only smear the line, and dashes tell lines apart.
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
    low_edge: list[float | None] = []
    high_edge: list[float | None] = []
    for row in rows:
        middle, spread = number(row.get(mean)), number(row.get(deviation))
        known = middle is not None and spread is not None
        low_edge.append(float(f"{(middle or 0.0) - (spread or 0.0):.7g}") if known else None)
        high_edge.append(float(f"{(middle or 0.0) + (spread or 0.0):.7g}") if known else None)
    if not any(value is not None for value in high_edge):
        return [line]
    edge_style = {"type": "scatter", "mode": "lines", "x": _steps(rows), "line": {"width": 0}, "hoverinfo": "skip"}
    low = {**edge_style, "y": low_edge, "name": "− std", "showlegend": False}
    high = {**edge_style, "y": high_edge, "name": "± std", "fill": "tonexty", "fillcolor": "$band", "showlegend": False}
    return [low, high, line]


def _held_out(rows: Sequence[Row], evaluation: Mapping[str, Any], metric: str, kept: int | None) -> Trace:
    """Held-out values where they were measured, joined by the evaluation before the first step and after the last."""
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
    colour = ("$blue", "$orange", "$green", "$muted")[index % 4]
    return {
        "type": "bar",
        "x": _steps(rows),
        "y": list(values),
        "name": name,
        "marker": {"color": colour, "line": {"width": 0}},
    }


def _figure(
    traces: list[Trace], *, height: int = 210, layout: Mapping[str, Any] | None = None, legend: bool | None = None
) -> dict[str, Any]:
    named = [trace for trace in traces if trace.get("showlegend", True)]
    merged: dict[str, Any] = {"height": height, "showlegend": len(named) > 1 if legend is None else legend}
    merged.update(layout or {})
    return {"data": traces, "layout": merged}
