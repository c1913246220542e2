"""Formatting of numbers and metrics, shared by the terminal and the HTML report.

An evaluation is the content of ``evaluation.json``: metric -> {before, after, difference, interval, p_value, n,
better}. Any of these may be missing, None or not finite, and is then shown as a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

DASH = "–"

TITLES = {
    "reward": "reward",
    "perplexity": "sample perplexity",
    "truth_perplexity": "true-text perplexity",
    "bleu": "BLEU",
    "chrf": "chrF",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "length": "length in tokens",
    "truth_nll": "true text, nats per token",
    "preference_accuracy": "preference accuracy",
    "preference_nll": "nats per pair",
    "preference_margin": "preference margin, nats",
    "chosen_perplexity": "chosen-answer perplexity",
    "label_accuracy": "label accuracy",
    "reward_gap": "desirable minus undesirable, nats",
    "desirable_perplexity": "desirable-answer perplexity",
}

EXPLANATIONS = {
    "perplexity": "perplexity of the sampled text under the frozen reference model",
    "truth_perplexity": "perplexity of the true held-out text under the trained model",
    "bleu": "overlap with the true continuation, 0 to 100",
    "chrf": "character overlap with the true continuation, 0 to 100",
    "distinct_1": "share of distinct words",
    "distinct_2": "share of distinct word pairs",
    "desirable_perplexity": "perplexity of desirable held-out answers under the trained model",
    "chosen_perplexity": "perplexity of preferred held-out answers under the trained model",
}

NO_BLEU = "left out, since most references have under four tokens and BLEU counts matches of four"

METRIC = "a reward that the recipe measures on held-out text but does not train on"

ARROWS = {"higher": "↑", "lower": "↓"}

# C0 and C1 controls, bidirectional overrides, line and paragraph separators and lone surrogates could move the cursor,
# recolour the terminal, reverse the reading order or fail to encode.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def lacks_bleu(evaluation: Mapping[str, Any]) -> bool:
    """Whether corpus BLEU was left out of an evaluation whose prompts have references."""
    return "chrf" in evaluation and "bleu" not in evaluation


def finite(value: Any) -> float | None:
    """Return the value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits, which JSON may hold
        return None
    return number if math.isfinite(number) else None


def printable(text: str) -> str:
    """Return one line that is safe to print on a terminal, with control characters escaped."""
    one_line = " ".join(str(text).split("\n"))
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), one_line)


def set_and_metric(metric: str) -> tuple[str, str]:
    """Return the held-out set of ``set/<set>/<metric>`` and its metric; the set is "" for the task's own prompts."""
    kind, _, rest = metric.partition("/")
    name, _, inner = rest.partition("/")
    return (name, inner) if kind == "set" and inner else ("", metric)


def title(metric: str) -> str:
    """Return the metric's title, shortened if it is too long for a table."""
    name, inner = set_and_metric(metric)
    if name:
        return f"{printable(name)}: {title(inner)}"
    if metric in TITLES:
        return TITLES[metric]
    kind = next((kind for kind in ("reward", "metric") if metric.startswith(f"{kind}/")), None)
    name = printable(metric.removeprefix(f"{kind}/") if kind else metric.replace("_", " "))
    name = name if len(name) <= 80 else f"{name[:79]}…"
    return f"{kind}: {name}" if kind else name


def ordered(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the metrics in display order: the reward, its parts, the recipe's metrics, those with titles, the rest.

    Those of further held-out sets follow, set by set.
    """
    known = list(TITLES)
    sets = list(dict.fromkeys(set_and_metric(metric)[0] for metric in evaluation))

    def rank(metric: str) -> tuple[bool, int, bool, bool, bool, int]:
        name, metric = set_and_metric(metric)
        index = known.index(metric) if metric in known else len(known)
        parts = (not metric.startswith("reward/"), not metric.startswith("metric/"))
        return bool(name), sets.index(name), metric != "reward", *parts, index

    return sorted((name for name, entry in evaluation.items() if isinstance(entry, Mapping)), key=rank)


def explanations(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the title and meaning of each metric that needs an explanation."""
    rows = [(title(metric), text) for metric, text in EXPLANATIONS.items() if metric in evaluation]
    if lacks_bleu(evaluation):
        rows.append((title("bleu"), NO_BLEU))
    return ([("metric", METRIC)] if any(name.startswith("metric/") for name in evaluation) else []) + rows


def interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95% interval of the difference, or None."""
    ends = entry.get("interval")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None
    low, high = finite(ends[0]), finite(ends[1])
    return None if low is None or high is None else (low, high)


def decimals(entry: Mapping[str, Any]) -> int:
    """Return the number of decimals that shows two significant digits of the interval's width; more would be noise."""
    ends = interval(entry)
    width = ends[1] - ends[0] if ends else 0.0
    if width <= 0:
        sizes = [abs(value) for key in ("before", "after") if (value := finite(entry.get(key)))]
        width = max(sizes, default=1.0) / 100
    if width < 1e-5:  # it may have rounded to zero
        return 6
    return min(6, max(0, 1 - math.floor(math.log10(width)))) if width < 100 else 0


def fixed(value: Any, places: int, *, sign: bool = False) -> str:
    """Format a number with a fixed number of decimals, or a dash. A number that rounds to zero has no sign."""
    number = finite(value)
    if number is None:
        return DASH
    text = f"{abs(number):,.{places}f}" if abs(number) < 1e15 else f"{abs(number):.3g}"
    if not any(digit in "123456789" for digit in text):
        return text
    return ("-" if number < 0 else "+" if sign else "") + text


def short(value: Any) -> str:
    """Format a number of any magnitude with four significant digits and at most four decimals."""
    number = finite(value)
    if number is None:
        return DASH
    if number == 0 or 1e-3 <= abs(number) < 1e6:
        places = 0 if abs(number) >= 1000 or number == 0 else min(4, max(0, 3 - math.floor(math.log10(abs(number)))))
        return fixed(number, places)
    return f"{number:.2e}"


def interval_text(entry: Mapping[str, Any]) -> str:
    """Format the interval as ``[low, high]``, or a dash."""
    ends = interval(entry)
    if ends is None:
        return DASH
    places = decimals(entry)
    return f"[{fixed(ends[0], places, sign=True)}, {fixed(ends[1], places, sign=True)}]"


def difference_text(entry: Mapping[str, Any]) -> str:
    """Format the difference with its interval, if it has one: ``+0.54 [+0.36, +0.71]``; or a dash."""
    difference = fixed(entry.get("difference"), decimals(entry), sign=True)
    return difference if interval(entry) is None else f"{difference} {interval_text(entry)}"


def p_text(entry: Mapping[str, Any]) -> str:
    """Format the p-value with three decimals, or as ``< 0.001``, since a bootstrap resolves no further."""
    p = finite(entry.get("p_value"))
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def change(entry: Mapping[str, Any]) -> str:
    """Return how a metric changed: "up", "down", "unclear" (the 95% interval contains zero or p >= 0.05), or "" if
    nothing was compared."""
    difference, ends, p = finite(entry.get("difference")), interval(entry), finite(entry.get("p_value"))
    if difference is None or (ends is None and p is None):
        return ""
    # The bootstrap and the randomization test can disagree near the threshold; a claim needs both.
    if (ends and ends[0] <= 0 <= ends[1]) or (p is not None and p >= 0.05):
        return "unclear"
    return "up" if difference > 0 else "down"


def result(entry: Mapping[str, Any]) -> str:
    """Return the result of a comparison: better, worse, higher, lower, unclear, or a dash."""
    moved = change(entry)
    if moved in ("", "unclear"):
        return moved or DASH
    wanted = {"higher": "up", "lower": "down"}.get(str(entry.get("better")))
    if wanted is None:
        return "higher" if moved == "up" else "lower"
    return "better" if moved == wanted else "worse"


def detectable_change(entry: Mapping[str, Any]) -> float | None:
    """Return the smallest change that such a comparison shows in 80% of cases, from the width of its interval.

    It is (1.96 + 0.84) standard errors, which are the half-width of the 95% interval divided by 1.96 (Cohen 1988,
    chapter 2).
    """
    ends = interval(entry)
    return None if ends is None or ends[0] == ends[1] else (ends[1] - ends[0]) / 2 * (1.96 + 0.84) / 1.96


def power(metric: str, entry: Mapping[str, Any], *, rows: bool = False) -> str:
    """State what change an unclear comparison could have shown, and how to show a smaller one; "" for any other.

    ``rows`` is whether the run is supervised.
    """
    shown, n, difference = detectable_change(entry), finite(entry.get("n")), finite(entry.get("difference"))
    if change(entry) != "unclear" or shown is None or not n or difference is None:
        return ""
    places = decimals(entry)
    text = f"{n:.0f} prompts show a change of {title(metric)} of {fixed(shown, places)} in four of five cases"
    ratio = abs(shown / difference) if difference else math.inf
    needed = n * ratio**2 if ratio < 1e6 else math.inf
    if n < needed < 1000 * n:
        digits = 1 - math.floor(math.log10(needed))
        text += f", and about {round(needed, digits):,.0f} show one of {fixed(abs(difference), places)}, as measured"
    more = "give more rows" if rows else "raise evaluation.prompts or evaluation.samples_per_prompt"
    return f"{text}: {more}, or train for longer"


def calibration_text(facts: Mapping[str, Any]) -> str:
    """State a reward model's calibration, from ``calibration.json``; "" without it."""
    error, chance, pairs = (finite(facts.get(key)) for key in ("error", "by_chance", "pairs"))
    if error is None or chance is None or pairs is None:
        return ""
    return (
        f"Calibration error over {pairs:.0f} held-out pairs: {error:.3f}; perfect calibration would give {chance:.3f} on "
        "average."
    )


def training_cost(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the total seconds and the peak memory in MB of all steps; 0 if the rows do not have them."""
    kept = list(rows)
    seconds = sum(finite(row.get("time/step")) or 0.0 for row in kept)
    return seconds, max((finite(row.get("memory/peak")) or 0.0 for row in kept), default=0.0)


def gigabytes(megabytes: float) -> str:
    """Format an amount of memory in GB."""
    return f"{megabytes / 1000:.1f} GB"


def duration(seconds: float | None) -> str:
    """Format a duration as ``7:05`` or ``1:02:03``, or a dash if it is not known."""
    if seconds is None:
        return DASH
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def about(seconds: float) -> str:
    """Format a duration to two figures: ``25 s``, ``8.5 min``, ``40 min``, ``2.3 h``, ``4.0 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    unit, size = next(unit for unit in (("days", 86400), ("h", 3600), ("min", 60)) if seconds >= 1.5 * unit[1])
    value = seconds / size
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def amount(done: int, total: int, *, in_bytes: bool) -> str:
    """Format progress as ``12/70`` or ``31.2/98.4 MB``, without the total if it is not known (0)."""
    if in_bytes:
        return f"{done / 1e6:.1f}/{total / 1e6:.1f} MB" if total > 0 else f"{done / 1e6:.1f} MB"
    return f"{done}/{total}" if total > 0 else str(done)
