"""The HTML report of a run: one self-contained file that makes no network request.

Text from models and data is never markup: the template escapes everything, no string of the JSON can end its script
element, and a content security policy allows only the page's own two scripts, by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.reports import conclusions, wording
from burnish.reports.page import charts, examples, samples
from burnish.reports.run_data import RunData, read_run
from burnish.reports.wording import finite
from burnish.system.files import explained, write_text
from burnish.text import mostly_han_or_kana

if TYPE_CHECKING:
    from jinja2 import Environment

_COLUMNS = (
    ("reward/mean", "reward"),
    ("reward/std", "std"),
    ("held_out/reward", "held-out"),
    ("kl", "KL"),
    ("entropy", "entropy"),
    ("length/mean", "length"),
    ("truncated", "truncated"),
    ("diversity/distinct_2", "distinct-2"),
    ("grad_norm", "grad norm"),
    ("tokens_per_second", "tokens/s"),
)
_SUPERVISED_COLUMNS = (
    ("loss", "loss"),
    ("preference/accuracy", "accuracy"),
    ("preference/margin", "margin"),
    ("grad_norm", "grad norm"),
    ("learning_rate", "learning rate"),
    ("tokens_per_second", "tokens/s"),
)
_COUNTS = {
    "origin": "source", "rows": "rows", "repeats": "repeated rows", "near_copies_of_held_out": "near-copies left out",
    "training_examples": "training examples", "held_out_examples": "held-out examples", "held_out_units": "held-out prompts",
    "cut_at_max_tokens": "cut at batch.max_tokens",
}  # fmt: skip
_TABLE_ROWS = 200


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder atomically, from the files that the folder has.

    Raises InputError if it is not a run folder, and BurnishError if the report cannot be written.
    """
    target = run_folder / "report.html"
    page = render(read_run(run_folder))
    with explained(f"cannot write {target}"):
        write_text(target, page)
    return target


def render(run: RunData) -> str:
    """Return the page as HTML."""
    environment = _environment()
    kept = next((int(step) for row in run.warnings if (step := finite(row.get("kept"))) is not None), None)
    sections = charts.chart_sections(run.rows, run.evaluation, kept, supervised=bool(run.kind))
    figures = [chart.figure for section in sections for chart in section.charts]
    source = _plotly() if figures else ""
    columns = _SUPERVISED_COLUMNS if run.kind else _COLUMNS
    if run.kind:
        compared = examples.measured_examples(run.examples, run.before, run.after)
    else:
        compared = samples.rank_pairs(samples.pair_samples(run.before, run.after))
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8").strip()
    return environment.get_template("report.html.j2").render(
        run=run,
        facts=_facts(run),
        conclusion=conclusions.main_conclusion(run),
        others=conclusions.other_outcomes(run.evaluation, conclusions.main_metric(run)),
        blandness=conclusions.blandness(run),
        warnings=_warnings(run),
        measurements=_measurements(run.evaluation),
        explanations=wording.explanations(run.evaluation),
        sections=sections,
        figures=script_json(figures),
        columns=[(key, title) for key, title in columns if any(finite(row.get(key)) is not None for row in run.rows)],
        table=charts.thin_rows(run.rows, _TABLE_ROWS),
        compared=compared,
        data=_data(run),
        calibration=wording.calibration_text(run.calibration),
        trained=samples.rank_training_samples(run.samples),
        trained_step=finite(run.samples[0].get("step")) if run.samples else None,
        environment=[*sorted(_flat(run.environment)), *_hashes(run.inputs)],
        script=script,
        plotly=_compressed(source) if source else "",
        hashes=[_hash(text) for text in (script, source) if text],
    )


@cache
def _compressed(source: str) -> str:
    """Return a script as base64 of its gzip; a process that writes several reports compresses Plotly once."""
    return base64.b64encode(gzip.compress(source.encode("utf-8"), 9, mtime=0)).decode("ascii")


def script_json(value: Any) -> str:
    """Return JSON for a script element, in which no string can end the element or a line, or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hashes(inputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key of the recipe that names inputs, with the files and the beginnings of their hashes."""
    for key, files in sorted(inputs.items()):
        if isinstance(files, dict):
            hashes = {name: one.get("sha256") for name, one in files.items() if isinstance(one, dict)}
            listed = [f"{name.rpartition('/')[2]} {str(digest)[:12]}" for name, digest in sorted(hashes.items())]
            yield key, ", ".join(listed)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        # The page shows a true minus sign; terminals and logs keep the ASCII hyphen.
        minus=lambda text: str(text).replace("-", "−"),
        typeset=lambda text: re.sub(r"(?<![\w-])-(?=\d)", "−", text),
        short=wording.short,
        signed=lambda value: wording.short(value) if (finite(value) or 0) <= 0 else f"+{wording.short(value)}",
        visible=samples.visible,
        language=lambda text: Markup(_language(text)),
        # Only for text that this package wrote: its script, and JSON from script_json.
        trusted=Markup,
    )
    return environment


def _language(text: str) -> str:
    """Return a ``lang`` attribute for Chinese or Japanese text, which selects glyphs and a screen reader's voice."""
    if not mostly_han_or_kana(text):
        return ""
    return ' lang="ja"' if re.search("[\u3040-\u30ff]", text) else ' lang="zh"'


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return the facts under the title: model, task, algorithm, steps, cost and seed."""

    def key(*path: str) -> str:
        value: Any = run.recipe
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return "" if value is None else samples.visible(value)

    steps = f"{run.steps_done} of {run.total_steps}" if run.total_steps else str(run.steps_done)
    seconds, memory = wording.training_cost(run.rows)
    facts = [
        ("model", _model(key("policy", "use"), key("policy", "model"), key("policy", "module"))),
        ("task", key("task", "use")),
        ("kind", run.kind),
        ("data", key("data", "path") or key("data", "dataset") or key("data", "use")),
        ("objective", key("preference", "use")),
        ("algorithm", key("algorithm", "use")),
        ("steps", steps),
        ("training time", wording.duration(seconds) if seconds else ""),
        ("peak memory", wording.gigabytes(memory) if memory else ""),
        ("seed", key("seed")),
    ]
    return [(name, value) for name, value in facts if value]


def _data(run: RunData) -> list[tuple[str, str]]:
    """Return the counts of a supervised run's rows, and the first ones that could not be used."""
    counts = [(title, samples.visible(run.data[key])) for key, title in _COUNTS.items() if run.data.get(key)]
    broken = run.data.get("broken")
    rows = [row for row in broken if isinstance(row, Mapping)] if isinstance(broken, list) else []
    listed = [f"{row.get('place')}: {row.get('reason')}" for row in rows[:5]]
    return counts + ([(f"{len(rows)} unusable rows", samples.visible("; ".join(listed)))] if rows else [])


def _model(use: str, model: str, module: str) -> str:
    """Return the name of the policy: its model or module, or its kind if it has neither."""
    return module if use == "module" else use if use in ("lstm", "tabular") else model


def _warnings(run: RunData) -> list[tuple[str, str]]:
    """Return (steps, text) of each distinct warning."""
    steps: dict[str, list[int]] = {}
    for row in run.warnings:
        step = finite(row.get("step"))
        steps.setdefault(samples.visible(row.get("text")), []).extend([] if step is None else [int(step)])
    return [(_format_steps(sorted(set(numbers))), text) for text, numbers in steps.items()]


def _format_steps(steps: list[int]) -> str:
    if not steps:
        return ""
    if steps == [0]:
        return "at the start"
    if len(steps) <= 3:
        return f"step{'s' if len(steps) > 1 else ''} " + ", ".join(map(str, steps))
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"


def _measurements(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one dict per metric for the evaluation table and its interval plot."""
    rows = []
    for metric in wording.ordered(evaluation):
        entry = evaluation[metric]
        places = wording.decimals(entry)
        result = wording.result(entry)
        rows.append(
            {
                "title": wording.title(metric),
                "arrow": wording.ARROWS.get(str(entry.get("better")), ""),
                "before": wording.fixed(entry.get("before"), places),
                "after": wording.fixed(entry.get("after"), places),
                "difference": wording.fixed(entry.get("difference"), places, sign=True),
                "interval": wording.interval_text(entry),
                "p": wording.p_text(entry),
                "result": result,
                "tone": result if result in ("better", "worse") else "plain",
                "plot": _forest(entry),
            }
        )
    return rows


def _forest(entry: Mapping[str, Any]) -> dict[str, float] | None:
    """Return positions in percent of the plot's width, with zero in the middle and the farthest end near the edge."""
    ends, difference = wording.interval(entry), finite(entry.get("difference"))
    if ends is None or difference is None:
        return None
    reach = max(abs(ends[0]), abs(ends[1]), abs(difference)) or 1.0
    low, high, middle = (round(50 + 46 * value / reach, 2) for value in (*ends, difference))
    return {"low": low, "width": round(high - low, 2), "high": high, "middle": middle}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}.")
        else:
            yield samples.visible(name), samples.visible(item if item is not None else wording.DASH)
