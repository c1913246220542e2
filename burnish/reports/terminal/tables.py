"""The evaluation table and the calibration table of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from burnish.reports import wording

# Colour repeats the word, so the table reads the same without it.
_STYLES = {"better": "green", "worse": "red"}


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Return the held-out metrics before and after training, one row per metric, with the result in words."""
    table = Table(
        title="Held-out evaluation", title_justify="left", title_style="bold",
        caption=_caption(evaluation), caption_justify="left", caption_style="", box=box.SIMPLE_HEAD, pad_edge=False,
        padding=0,
    )  # fmt: skip
    table.add_column("metric (better)", overflow="fold")
    for header in ("before", "after", "difference [95%]", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for metric in wording.ordered(evaluation):
        entry = evaluation[metric]
        places = wording.decimals(entry)
        arrow = wording.ARROWS.get(str(entry.get("better")), "")
        result = wording.result(entry)
        table.add_row(
            Text(f"{wording.title(metric)}\u00a0{arrow}" if arrow else wording.title(metric)),
            wording.fixed(entry.get("before"), places),
            wording.fixed(entry.get("after"), places),
            wording.difference_text(entry),
            wording.p_text(entry),
            Text(result, style=_STYLES.get(result, "")),
        )
    return table


def plain_text(evaluation: Mapping[str, Any], width: int = 80) -> str:
    """Format the table as plain lines of at most ``width`` columns, for logs and pipes; nothing is truncated."""
    lines = StringIO()
    console = Console(file=lines, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(evaluation_table(evaluation))
    plain = lines.getvalue().replace("\u00a0", " ")
    return "\n".join(line.rstrip() for line in plain.splitlines()) + "\n"


def print_evaluation(evaluation: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table if the console is a terminal that is wide enough, else its plain text."""
    console = console or Console()
    if console.is_terminal and console.width >= 80:
        console.print(evaluation_table(evaluation))
        return
    # An output that cannot encode an arrow must not fail a run that has just succeeded.
    text = plain_text(evaluation)
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    if text != text.encode(encoding, errors="replace").decode(encoding):
        for mark, plain in (("↑", "(up)"), ("↓", "(down)"), (wording.DASH, "-"), ("─", "-")):
            text = text.replace(mark, plain)
        text = text.encode(encoding, errors="replace").decode(encoding)
    console.file.write(text)
    console.file.flush()


def print_calibration(calibration: Mapping[str, Any]) -> None:
    """Print a reward model's reliability table from ``calibration.json``: stated confidence against accuracy."""
    print(
        f"\nCalibration over {calibration['pairs']} held-out pairs: error {calibration['error']:.3f} (perfect "
        f"calibration would give {calibration['by_chance']:.3f} on average, at most {calibration['by_chance_95']:.3f} "
        "in 95% of cases)"
    )
    print("confidence             pairs   mean conf.    accuracy")
    for row in calibration["table"]:
        span = f"{row['low']:.2f} to {row['high']:.2f}"
        print(f"{span}{row['pairs']:15}{row['confidence']:14.3f}{row['accuracy']:12.3f}")


def _caption(evaluation: Mapping[str, Any]) -> Text:
    sizes = sorted({int(n) for entry in evaluation.values() if isinstance(entry, Mapping) and (n := entry.get("n"))})
    span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}" if sizes else "the same"
    notes = [
        f"Paired over {span} prompts; ↑ higher is better, ↓ lower is better. A difference is unclear "
        "unless its 95% interval excludes zero and p < 0.05."
    ]
    notes += [
        f"{wording.title(metric)}: {text}."
        for metric, text in wording.EXPLANATIONS.items()
        if metric in evaluation and metric.endswith("perplexity")
    ]
    names = wording.ordered(evaluation)
    if names and (text := wording.power(names[0], evaluation[names[0]], rows="reward" not in evaluation)):
        notes.append(f"{text}.")
    if wording.lacks_bleu(evaluation):
        notes.append(f"{wording.title('bleu')}: {wording.NO_BLEU}.")
    if any(metric.startswith("metric/") for metric in evaluation):
        notes.append(f"metric: {wording.METRIC}.")
    return Text(" ".join(notes))
