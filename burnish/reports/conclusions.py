"""What a run proves, in plain sentences. Nothing is claimed that the held-out intervals do not carry."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from burnish.reports import wording
from burnish.reports.run_data import RunData
from burnish.reports.wording import number


def verdict(run: RunData) -> str:
    """Whether held-out reward rose, with its evidence; or why that cannot be said."""
    entry = run.evaluation.get("reward")
    if isinstance(entry, Mapping) and number(entry.get("difference")) is not None:
        moved = wording.change(entry)
        places = wording.decimals(entry)
        before, after = (wording.fixed(entry.get(key), places) for key in ("before", "after"))
        if moved == "unclear":
            start = (
                f"There is no clear evidence that the held-out reward changed: it was {before} before and {after} after"
            )
        elif moved:
            start = f"Held-out reward {'rose' if moved == 'up' else 'fell'} from {before} to {after}"
        else:
            start = f"Held-out reward went from {before} to {after}, without a test of whether that is more than chance"
        evidence = _evidence(entry)
        return start + (f" ({evidence})." if evidence else ".")
    return f"Nothing is proved yet: this run holds no comparison of the reward on held-out prompts. {_training(run)}".strip()


def _evidence(entry: Mapping[str, Any]) -> str:
    places = wording.decimals(entry)
    parts = [f"difference {wording.fixed(entry.get('difference'), places, sign=True)}"]
    if (ends := wording.interval(entry)) is not None:
        low, high = (wording.fixed(end, places, sign=True) for end in ends)
        parts.append(f"95% interval {low} to {high}")
    if (p := number(entry.get("p_value"))) is not None:
        parts.append("p < 0.001" if p < 0.001 else f"p = {p:.3f}")
    if (n := number(entry.get("n"))) is not None:
        parts.append(f"{n:.0f} prompts")
    return ", ".join(parts)


def _training(run: RunData) -> str:
    rewards = [value for row in run.rows if (value := number(row.get("reward/mean"))) is not None]
    if len(rewards) < 2:
        return ""
    k = max(1, min(5, len(rewards) // 2))
    first, last = statistics.fmean(rewards[:k]), statistics.fmean(rewards[-k:])
    span = f"over its first {k} steps and {{}} over its last {k}" if k > 1 else "at its first step and {} at its last"
    return (
        f"The reward on training prompts was {wording.short(first)} {span.format(wording.short(last))}; "
        "these are different prompts each time, so this is no proof."
    )


def other_outcomes(evaluation: Mapping[str, Any]) -> str:
    """The metrics beside the reward that moved clearly, and those that did not, in one sentence or none."""
    groups: dict[str, list[str]] = {}
    for metric in wording.ordered(evaluation):
        if metric.startswith("reward"):
            continue
        word = wording.reading(evaluation[metric])
        groups.setdefault(word, []).append(wording.title(metric))
    words = ("better", "worse", "higher", "lower", "no clear change")
    said = [f"{word}: {_and(groups[word])}" for word in words if word in groups]
    return f"Of the other measurements, {'; '.join(said)}." if said else ""


def blandness(run: RunData) -> list[str]:
    """How much of the change is the model becoming blander: the honest sentences beside the table."""
    evaluation = run.evaluation
    return [line for line in (_contributions(run), _variety(evaluation), _length(evaluation)) if line]


def _contributions(run: RunData) -> str:
    """Each part's weight times its own difference; said only where these add up to the reward's difference."""
    total = _difference(run.evaluation, "reward")
    sections = run.recipe.get("reward")
    if not total or not isinstance(sections, list):
        return ""
    shares: dict[str, float] = {}
    for section in sections:
        if not isinstance(section, dict):
            return ""
        part = str(section.get("name") or str(section.get("use", "")).rpartition(":")[2])
        change = _difference(run.evaluation, f"reward/{part}")
        weight = number(section.get("weight", 1.0))
        if change is None or weight is None:
            return ""
        shares[part] = weight * change
    if len(shares) < 2 or abs(sum(shares.values()) - total) > 0.02 * max(abs(total), *map(abs, shares.values())):
        return ""
    places = wording.decimals(run.evaluation["reward"])
    said = [
        f"{wording.printable(part)} {wording.fixed(share, places, sign=True)}"
        for part, share in sorted(shares.items(), key=lambda item: -abs(item[1]))
    ]
    return f"Of the reward's {wording.fixed(total, places, sign=True)}, the weighted parts give: {_and(said)}."


def _variety(evaluation: Mapping[str, Any]) -> str:
    perplexity, distinct = _moved(evaluation, "perplexity"), _moved(evaluation, "distinct_2")
    if not perplexity and not distinct:
        return ""
    plainer = f"more predictable to the reference model (perplexity {_from_to(evaluation, 'perplexity')})"
    poorer = f"less varied (distinct-2 {_from_to(evaluation, 'distinct_2')})"
    if perplexity == "down" and distinct == "down":
        said = f"The model became blander: its text is {plainer} and {poorer}."
        return f"{said} {_beyond_blandness(evaluation)}"
    if perplexity == "down":
        variety = (
            ""
            if not distinct
            else ", without a clear loss of variety (distinct-2 {})".format(_from_to(evaluation, "distinct_2"))
        )
        return f"The text became {plainer}{variety}. {_beyond_blandness(evaluation)}"
    if distinct == "down":
        plain = ", though not more predictable to the reference model" if perplexity else ""
        return f"The text became {poorer}{plain}."
    if not perplexity or not distinct:
        return ""
    return "No sign of the model becoming blander: its text is neither clearly more predictable nor less varied."


def _beyond_blandness(evaluation: Mapping[str, Any]) -> str:
    truth = [metric for metric in ("bleu", "chrf") if _moved(evaluation, metric)]
    if not truth:
        return "No measurement against true text says how much of the gain is more than that."
    risen = [wording.title(metric) for metric in truth if _moved(evaluation, metric) == "up"]
    if risen:
        return f"That is not all of it: {_and(risen)} against the true text rose clearly as well."
    names = _and([wording.title(metric) for metric in truth])
    return f"{names} against the true text did not clearly rise, so most of the gain may be just that."


def _length(evaluation: Mapping[str, Any]) -> str:
    moved = _moved(evaluation, "length")
    if moved not in ("up", "down"):
        return ""
    return (
        f"Answers became {'longer' if moved == 'up' else 'shorter'} ({_from_to(evaluation, 'length', ' tokens')}), "
        "which by itself moves perplexity, BLEU and distinct-n."
    )


def _moved(evaluation: Mapping[str, Any], metric: str) -> str:
    entry = evaluation.get(metric)
    return wording.change(entry) if isinstance(entry, Mapping) else ""


def _difference(evaluation: Mapping[str, Any], metric: str) -> float | None:
    entry = evaluation.get(metric)
    return number(entry.get("difference")) if isinstance(entry, Mapping) else None


def _from_to(evaluation: Mapping[str, Any], metric: str, unit: str = "") -> str:
    entry = evaluation.get(metric)
    if not isinstance(entry, Mapping):
        return wording.DASH
    places = wording.decimals(entry)
    before, after = number(entry.get("before")), number(entry.get("after"))
    share = f", {wording.fixed((after / before - 1) * 100, 0, sign=True)}%" if before and after is not None else ""
    return f"{wording.fixed(before, places)} to {wording.fixed(after, places)}{unit}{share}"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
