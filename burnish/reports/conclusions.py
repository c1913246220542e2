"""Conclusions from a run in plain sentences, each supported by a held-out interval."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from burnish.reports import wording
from burnish.reports.run_data import RunData
from burnish.reports.wording import finite


def main_metric(run: RunData) -> str:
    """Return the metric that a run is about."""
    known = ("preference_accuracy", "label_accuracy", "truth_perplexity") if run.kind else ()
    return next((name for name in known if name in run.evaluation), "reward")


def main_conclusion(run: RunData) -> str:
    """State whether the held-out reward, or the run's other main metric, changed, or why that is not known."""
    metric = main_metric(run)
    entry, name = _entry(run.evaluation, metric), wording.title(metric)
    if finite(entry.get("difference")) is None:
        of = "" if run.kind else " of the reward"
        return f"No conclusion yet: this run has no held-out comparison{of}. {_training(run)}".strip()
    moved = wording.change(entry)
    places = wording.decimals(entry)
    before, after = (wording.fixed(entry.get(key), places) for key in ("before", "after"))
    if moved == "unclear":
        start = f"There is no clear evidence that held-out {name} changed: {before} before training, {after} after"
    elif moved:
        start = f"Held-out {name} {'rose' if moved == 'up' else 'fell'} from {before} to {after}"
    else:
        start = f"Held-out {name} went from {before} to {after}, without a test of significance"
    power = f" {text}." if (text := wording.power(metric, entry, rows=bool(run.kind))) else ""
    return f"{start} ({_evidence(entry)}).{power}"


def _evidence(entry: Mapping[str, Any]) -> str:
    places = wording.decimals(entry)
    parts = [f"difference {wording.fixed(entry.get('difference'), places, sign=True)}"]
    if (ends := wording.interval(entry)) is not None:
        low, high = (wording.fixed(end, places, sign=True) for end in ends)
        parts.append(f"95% interval {low} to {high}")
    if (p := wording.p_text(entry)) != wording.DASH:
        parts.append(f"p {p}" if p.startswith("<") else f"p = {p}")
    if (n := finite(entry.get("n"))) is not None:
        parts.append(f"{n:.0f} prompts")
    return ", ".join(parts)


def _training(run: RunData) -> str:
    rewards = [value for row in run.rows if (value := finite(row.get("reward/mean"))) is not None]
    if len(rewards) < 2:
        return ""
    k = max(1, min(5, len(rewards) // 2))
    first, last = statistics.fmean(rewards[:k]), statistics.fmean(rewards[-k:])
    span = f"over its first {k} steps and {{}} over its last {k}" if k > 1 else "at its first step and {} at its last"
    return (
        f"The reward on training prompts was {wording.short(first)} {span.format(wording.short(last))}; "
        "each step uses different prompts, so this proves nothing."
    )


def other_outcomes(evaluation: Mapping[str, Any], main: str = "reward") -> str:
    """State in one sentence how each metric but the main one changed, and the reward of further sets; "" if none did."""
    groups: dict[str, list[str]] = {}
    for metric in wording.ordered(evaluation):
        name, inner = wording.set_and_metric(metric)
        if inner == "reward" if name else metric != main and not metric.startswith("reward/"):
            groups.setdefault(wording.result(evaluation[metric]), []).append(wording.title(metric))
    clauses = [f"{_join(groups[result])} {verb}" for result, verb in _VERBS.items() if result in groups]
    return f"Other metrics: {'; '.join(clauses)}." if clauses else ""


_VERBS = {
    "better": "improved",
    "worse": "got worse",
    "higher": "rose",
    "lower": "fell",
    "unclear": "did not clearly change",
}


def blandness(run: RunData) -> list[str]:
    """State how much of the gain may come from blander or longer text, one sentence per finding."""
    return list(filter(None, (_contributions(run), _variety(run.evaluation), _length(run.evaluation))))


def _contributions(run: RunData) -> str:
    """List each part's weight times its difference, but only if these add up to the reward's difference."""
    total = finite(_entry(run.evaluation, "reward").get("difference"))
    sections = run.recipe.get("reward")
    if not total or not isinstance(sections, list):
        return ""
    shares: dict[str, float] = {}
    for section in sections:
        if not isinstance(section, dict):
            return ""
        part = str(section.get("name") or str(section.get("use", "")).rpartition(":")[2])
        change = finite(_entry(run.evaluation, f"reward/{part}").get("difference"))
        weight = finite(section.get("weight", 1.0))
        if change is None or weight is None:
            return ""
        shares[part] = weight * change
    if len(shares) < 2 or abs(sum(shares.values()) - total) > 0.02 * max(abs(total), *map(abs, shares.values())):
        return ""
    places = wording.decimals(run.evaluation["reward"])
    terms = [
        f"{wording.printable(part)} {wording.fixed(share, places, sign=True)}"
        for part, share in sorted(shares.items(), key=lambda item: -abs(item[1]))
    ]
    return f"Contributions to the change of {wording.fixed(total, places, sign=True)} in reward: {_join(terms)}."


def _variety(evaluation: Mapping[str, Any]) -> str:
    perplexity, distinct = _moved(evaluation, "perplexity"), _moved(evaluation, "distinct_2")
    if not perplexity and not distinct:
        return ""
    predictable = f"more predictable to the reference model (perplexity {_from_to(evaluation, 'perplexity')})"
    monotonous = f"less varied (distinct-2 {_from_to(evaluation, 'distinct_2')})"
    if perplexity == "down" and distinct == "down":
        return f"The text became blander: {predictable} and {monotonous}. {_beyond_blandness(evaluation)}"
    if perplexity == "down":
        kept = f", without a clear loss of variety (distinct-2 {_from_to(evaluation, 'distinct_2')})"
        variety = kept if distinct else ""
        return f"The text became {predictable}{variety}. {_beyond_blandness(evaluation)}"
    if distinct == "down":
        contrast = ", though not more predictable to the reference model" if perplexity else ""
        return f"The text became {monotonous}{contrast}."
    if not perplexity or not distinct:
        return ""
    return "There is no sign of blander text: it is neither clearly more predictable nor clearly less varied."


def _beyond_blandness(evaluation: Mapping[str, Any]) -> str:
    measured = [metric for metric in ("bleu", "chrf") if _moved(evaluation, metric)]
    if not measured:
        return "Without a comparison with the true text, the rest of the gain cannot be judged."
    risen = [wording.title(metric) for metric in measured if _moved(evaluation, metric) == "up"]
    if risen:
        return f"This does not explain the whole gain: {_join(risen)} against the true text clearly rose too."
    names = _join([wording.title(metric) for metric in measured])
    return f"{names} against the true text did not clearly rise, so this may explain most of the gain."


def _length(evaluation: Mapping[str, Any]) -> str:
    moved = _moved(evaluation, "length")
    if moved not in ("up", "down"):
        return ""
    return (
        f"Answers became {'longer' if moved == 'up' else 'shorter'} ({_from_to(evaluation, 'length', ' tokens')}); "
        "this alone affects perplexity, BLEU and distinct-n."
    )


def _entry(evaluation: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    entry = evaluation.get(metric)
    return entry if isinstance(entry, Mapping) else {}


def _moved(evaluation: Mapping[str, Any], metric: str) -> str:
    return wording.change(_entry(evaluation, metric))


def _from_to(evaluation: Mapping[str, Any], metric: str, unit: str = "") -> str:
    entry = _entry(evaluation, metric)
    places = wording.decimals(entry)
    before, after = finite(entry.get("before")), finite(entry.get("after"))
    share = f", {wording.fixed((after / before - 1) * 100, 0, sign=True)}%" if before and after is not None else ""
    return f"{wording.fixed(before, places)} to {wording.fixed(after, places)}{unit}{share}"


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
