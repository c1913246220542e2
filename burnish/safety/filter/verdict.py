"""Findings in a text, and the verdict on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["allow", "flag", "block"]
ACTIONS: tuple[Action, ...] = ("allow", "flag", "block")
"""In the order of severity."""


@dataclass(frozen=True, slots=True)
class TextFinding:
    """A part of a text that a layer reports.

    Attributes:
        category: such as "profanity" or "email"; ``policy.CATEGORIES`` lists burnish's own.
        start: index of the first character in the original text.
        end: index after the last character.
        score: from 0 to 1; a policy's threshold decides whether it counts.
        layer: "words", "patterns", "classifier", "found" or "model".
    """

    category: str
    start: int
    end: int
    score: float
    layer: str


@dataclass(frozen=True, slots=True)
class FilterVerdict:
    """The verdict on a text: the severest action of its findings, which are in the order of the text.

    Attributes:
        verdict: "allow", "flag" or "block".
        findings: those that reach their category's threshold, without those of allowed categories.
        decisive: the finding with the highest score among those of the severest action; None if there is none.
        blocked: categories among ``findings`` whose action is "block".
    """

    verdict: Action
    findings: tuple[TextFinding, ...] = ()
    decisive: TextFinding | None = None
    blocked: frozenset[str] = frozenset()

    @property
    def categories(self) -> list[str]:
        """The categories of the findings, sorted."""
        return sorted({finding.category for finding in self.findings})

    def row(self) -> dict[str, Any]:
        """Return the verdict as ``burnish filter --json`` prints it."""
        spans = [
            {"start": one.start, "end": one.end, "category": one.category, "score": one.score, "layer": one.layer}
            for one in self.findings
        ]
        score, layer = (self.decisive.score, self.decisive.layer) if self.decisive else (0.0, None)
        return {
            "verdict": self.verdict, "categories": self.categories, "spans": spans, "score": score, "layer": layer,
        }  # fmt: skip


ALLOWED = FilterVerdict("allow")


def redact(text: str, findings: Iterable[TextFinding]) -> str:
    """Return the text with each finding replaced by its category in brackets; overlapping findings become one."""
    pieces, end = [], 0
    for finding in sorted(findings, key=lambda one: (one.start, -one.end)):
        if finding.start >= end:
            pieces += [text[end : finding.start], f"[{finding.category}]"]
        end = max(end, finding.end)
    return "".join([*pieces, text[end:]])


def without_repeats(findings: Sequence[TextFinding]) -> list[TextFinding]:
    """Return the findings in the order of the text, without those inside another one of their category."""
    kept: list[TextFinding] = []
    ends: dict[str, int] = {}
    for finding in sorted(findings, key=lambda one: (one.start, -one.end, -one.score)):
        if finding.end > ends.get(finding.category, -1):
            ends[finding.category] = finding.end
            kept.append(finding)
    return kept
