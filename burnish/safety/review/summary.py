"""A review in figures: progress and agreement, for the terminal, for JSON and for a release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from burnish.safety.review.agreement import measure_agreement
from burnish.safety.review.store import LABELS, ReviewStore

_COEFFICIENTS = {"raw": "raw agreement", "ac1": "Gwet's AC1", "fleiss": "Fleiss' kappa", "cohen": "Cohen's kappa"}


def summarise(store: ReviewStore) -> dict[str, Any]:
    """Return progress, and by kind the agreement; None where no item was judged by two people."""
    judgements = list(store.judgements())
    measured = {kind: measure_agreement(judgements, kind) for kind in LABELS}
    agreement = {kind: None if one is None else asdict(one) for kind, one in measured.items()}
    return {**asdict(store.progress()), "agreement": agreement}


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a summary for people."""
    for kind, total in summary["total"].items():
        yield f"{kind:6} {summary['done'][kind]} of {total} done"
    for name, count in summary["by_reviewer"].items():
        yield f"{name}: {count} judgements"
    for kind, one in summary["agreement"].items():
        if one is None:
            yield f"agreement on {kind}s: no item was judged by two people (--overlap)"
            continue
        yield f"agreement on {kind}s, {one['items']} items judged by two or more:"
        for key, title in _COEFFICIENTS.items():
            if coefficient := one[key]:
                yield f"  {title:14} {_coefficient_text(coefficient)}"


def _coefficient_text(coefficient: Mapping[str, Any]) -> str:
    if coefficient["value"] is None:
        return "not defined: all labels are equal"
    low, high = coefficient["interval"]
    return f"{coefficient['value']:.2f} [{low:.2f}, {high:.2f}]"
