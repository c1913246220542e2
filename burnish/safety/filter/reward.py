"""Reward by the content filter's verdict: a penalty, a gate and counts in the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from burnish.rewards.registry import reward
from burnish.safety.filter.content_filter import load_filter
from burnish.safety.filter.policy import read_policy

_VALUES = {"allow": 0.0, "flag": -0.5, "block": -1.0}


def _check(*, policy: str) -> None:
    load_filter(policy)


def _found_file(*, policy: str) -> list[Path]:
    """Return the file that a policy learns from."""
    found = read_policy(policy).found
    return [] if found is None else [Path(found).absolute()]


@reward(check_options=_check, files=_found_file)
def content_filter(text: str, log_count: Callable[[str, float], None], *, policy: str = "") -> float:
    """Penalty by the verdict of the content filter on a text, in [-1, 0]: 0 allowed, -0.5 flagged, -1 blocked.

    With ``gate = 0.0`` other parts give no credit to a text that is flagged or blocked, with ``gate = -0.5`` to one that
    is blocked. Below 0, it counts behind the closed gates of others too. The number of findings of each category is a
    metric, ``scoring/content_filter/<category>``, and the categories are flags in samples.jsonl. An empty text scores 0.

    Fails by: seeing words, not meaning: contempt in clean words, threats that are not in the lists and instructions
    that do harm score 0, and a quotation counts as its author's own words.

    Args:
        text: the completion's text.
        policy: a TOML file; empty is the default policy.

    Source: glin-profanity's lists (MIT, derived from LDNOOBW, CC-BY-4.0), and patterns of personal data.
    """
    verdict = load_filter(policy).check(text)
    for finding in verdict.findings:
        log_count(finding.category, 1.0)
    return _VALUES[verdict.verdict]
