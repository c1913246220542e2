"""How numbers and metrics are put into words: one wording for the terminal and for the report.

An evaluation is the content of ``evaluation.json``: metric -> {before, after, difference, interval, p_value, n,
better}. Any of these may be missing, None or not finite; what cannot be said is left as a dash.
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
    "reward_gap": "desirable less undesirable, nats",
    "desirable_perplexity": "desirable-answer perplexity",
}

EXPLANATIONS = {
    "perplexity": "of the sampled text under the frozen reference model",
    "truth_perplexity": "of true held-out text under the trained model",
    "bleu": "overlap with the true continuation, 0 to 100",
    "chrf": "character overlap with the true continuation, 0 to 100",
    "distinct_1": "share of different words",
    "distinct_2": "share of different word pairs",
    "desirable_perplexity": "of desirable held-out answers under the trained model",
    "chosen_perplexity": "of preferred held-out answers under the trained model",
}

MEASURED = "a reward that the recipe measures on held-out text and does not train on"

ARROWS = {"higher": "↑", "lower": "↓"}

_ORDER = list(TITLES)
# C0 and C1 controls, bidirectional overrides, line and paragraph separators, lone surrogates: what could move a cursor,
# recolour a terminal, turn the reading order around or fail to encode.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def number(value: Any) -> float | None:
    """The value as a finite float, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def printable(text: str) -> str:
    """One line that is safe on a terminal: whatever could steer it is written as its escape."""
    one_line = " ".join(str(text).split("\n"))
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), one_line)


def title(metric: str) -> str:
    """The metric in words; a name that no one could read in a table is shortened."""
    if metric in TITLES:
        return TITLES[metric]
    kind = next((kind for kind in ("reward", "metric") if metric.startswith(f"{kind}/")), None)
    name = printable(metric.removeprefix(f"{kind}/") if kind else metric.replace("_", " "))
    name = name if len(name) <= 80 else f"{name[:79]}…"
    return f"{kind}: {name}" if kind else name


def ordered(evaluation: Mapping[str, Any]) -> list[str]:
    """Metrics in the order of reading: the reward, its parts, the recipe's metrics, the known ones, then the rest."""

    def rank(metric: str) -> tuple[int, int]:
        if metric == "reward":
            return (0, 0)
        if metric.startswith("reward/"):
            return (1, 0)
        if metric.startswith("metric/"):
            return (1, 1)
        return (2, _ORDER.index(metric)) if metric in _ORDER else (3, 0)

    return sorted((name for name, entry in evaluation.items() if isinstance(entry, Mapping)), key=rank)


def explanations(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the metrics that are there mean, beside their titles."""
    found = [(title(metric), text) for metric, text in EXPLANATIONS.items() if metric in evaluation]
    return ([("metric", MEASURED)] if any(name.startswith("metric/") for name in evaluation) else []) + found


def interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95% interval of the difference, or None where there is none."""
    ends = entry.get("interval")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None
    low, high = number(ends[0]), number(ends[1])
    return None if low is None or high is None else (low, high)


def decimals(entry: Mapping[str, Any]) -> int:
    """How many decimals a metric deserves: two significant digits of its interval's width, since more is noise."""
    ends = interval(entry)
    width = ends[1] - ends[0] if ends else 0.0
    if width <= 0:
        sizes = [abs(value) for key in ("before", "after") if (value := number(entry.get(key)))]
        width = max(sizes, default=1.0) / 100
    return min(6, max(0, 1 - math.floor(math.log10(width))))


def fixed(value: Any, places: int, *, sign: bool = False) -> str:
    """A number with so many decimals; a dash where there is none. A rounded zero carries no sign."""
    finite = number(value)
    if finite is None:
        return DASH
    text = f"{abs(finite):,.{places}f}"
    if not any(digit in "123456789" for digit in text):
        return text
    return ("-" if finite < 0 else "+" if sign else "") + text


def short(value: Any) -> str:
    """A number of unknown scale in four significant digits, and no more than four decimals."""
    finite = number(value)
    if finite is None:
        return DASH
    if finite == 0 or 1e-3 <= abs(finite) < 1e6:
        places = 0 if abs(finite) >= 1000 or finite == 0 else min(4, max(0, 3 - math.floor(math.log10(abs(finite)))))
        return fixed(finite, places)
    return f"{finite:.2e}"


def interval_text(entry: Mapping[str, Any]) -> str:
    """``[low, high]`` or a dash."""
    ends = interval(entry)
    if ends is None:
        return DASH
    places = decimals(entry)
    return f"[{fixed(ends[0], places, sign=True)}, {fixed(ends[1], places, sign=True)}]"


def p_text(entry: Mapping[str, Any]) -> str:
    """The p-value in three decimals; below that only as a bound, since a bootstrap resolves no finer."""
    p = number(entry.get("p_value"))
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def change(entry: Mapping[str, Any]) -> str:
    """ "up", "down", "unclear" where the 95% interval holds zero or p is not below 0.05, "" where nothing was compared."""
    difference = number(entry.get("difference"))
    ends = interval(entry)
    p = number(entry.get("p_value"))
    if difference is None or (ends is None and p is None):
        return ""
    # Two tests, a bootstrap and a randomization, which can differ near the edge: a claim needs both.
    if (ends and ends[0] <= 0 <= ends[1]) or (p is not None and p >= 0.05):
        return "unclear"
    return "up" if difference > 0 else "down"


def reading(entry: Mapping[str, Any]) -> str:
    """The comparison in a word or three: better, worse, higher, lower, no clear change."""
    moved = change(entry)
    if moved in ("", "unclear"):
        return "no clear change" if moved else DASH
    wanted = {"higher": "up", "lower": "down"}.get(str(entry.get("better")))
    if wanted is None:
        return "higher" if moved == "up" else "lower"
    return "better" if moved == wanted else "worse"


def training_cost(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds of all steps, and MB of the most memory that one of them had; 0 where the rows do not say."""
    kept = list(rows)
    seconds = sum(number(row.get("time/step")) or 0.0 for row in kept)
    return seconds, max((number(row.get("memory/peak")) or 0.0 for row in kept), default=0.0)


def gigabytes(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB"


def duration(seconds: float | None) -> str:
    """``7:05`` or ``1:02:03``; a dash where it is not known."""
    if seconds is None:
        return DASH
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def amount(done: int, total: int, *, in_bytes: bool) -> str:
    """``12/70``, or ``31.2/98.4 MB`` for bytes; only what is done where the total is not known."""
    if in_bytes:
        return f"{done / 1e6:.1f}/{total / 1e6:.1f} MB" if total > 0 else f"{done / 1e6:.1f} MB"
    return f"{done}/{total}" if total > 0 else str(done)
