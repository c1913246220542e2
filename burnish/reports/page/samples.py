"""The samples that the report shows, and the escaping of invisible characters in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from burnish.reports.wording import finite

OPEN, FOLDED = 3, 9
"""Samples per list that are shown directly, and those behind a fold."""
MAX_CHARACTERS = 4000

# Control characters and those that reverse the reading order, with which a text could pose as another, are shown by
# code point. Marks that scripts need (joiners, LRM, RLM) stay.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One completion with its reward, parts and notes."""

    text: str
    reward: float | None
    parts: list[tuple[str, float | None]]
    cut: bool
    notes: list[str]


@dataclass(frozen=True, slots=True)
class SamplePair:
    """The completions of one prompt before and after training."""

    label: str
    prompt: str
    reference: str
    before: ScoredText
    after: ScoredText

    @property
    def gain(self) -> float | None:
        """Change of the reward, or None if a reward is unknown."""
        if self.before.reward is None or self.after.reward is None:
            return None
        return self.after.reward - self.before.reward


@dataclass(frozen=True, slots=True)
class SampleList:
    """A titled list of samples: the first ones shown, the others folded."""

    title: str
    note: str
    first: Sequence[Any]
    more: Sequence[Any]


def visible(text: Any, limit: int = MAX_CHARACTERS) -> str:
    """Make invisible characters visible and shorten long text; the template escapes the result."""
    plain = "" if text is None else str(text)
    left = len(plain) - limit
    plain = plain[:limit].replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    plain = _HIDDEN.sub(lambda match: f"[U+{ord(match.group()):04X}]", plain)
    return plain + (f" … ({left:,} more characters)" if left > 0 else "")


def _continuation(text: Any) -> str:
    # A continuation starts with the space after its prompt, which is not needed when it is shown alone.
    return visible(text).removeprefix(" ")


def pair_samples(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[SamplePair]:
    """Pair rows by prompt and by their index among that prompt's rows; rows without a partner are left out."""
    partners = dict(_keyed(after))
    pairs = []
    for key, row in _keyed(before):
        if (partner := partners.get(key)) is not None:
            label = visible(key[0]) + (f", sample {key[1] + 1}" if key[1] else "")
            prompt, reference = visible(row.get("prompt")), _continuation(row.get("reference"))
            pairs.append(SamplePair(label, prompt, reference, _text(row, "text"), _text(partner, "text")))
    return pairs


class Gained(Protocol):
    """What is measured before and after training."""

    @property
    def gain(self) -> float | None: ...


def rank_pairs(pairs: Sequence[SamplePair]) -> list[SampleList]:
    """Return the first pairs of the held-out set, the largest gains and the largest losses."""
    note = "The first prompts of the held-out set, not selected by result."
    return rank_by_gain(pairs, note, "completions", " reward")


def rank_by_gain(pairs: Sequence[Gained], note: str, noun: str, measure: str) -> list[SampleList]:
    """Return the first pairs, the largest gains and the largest losses."""
    ranked = sorted((pair for pair in pairs if pair.gain), key=lambda pair: pair.gain or 0.0, reverse=True)
    gains = [pair for pair in ranked if (pair.gain or 0.0) > 0]
    losses = [pair for pair in reversed(ranked) if (pair.gain or 0.0) < 0]
    ties = len(pairs) - len(gains) - len(losses)
    tied = f"; {ties} did not change" if ties else ""
    count = f"Of {len(pairs)} {noun}, {len(gains)} gained and {len(losses)} lost{measure}{tied}."
    groups = [
        _list("First prompts", note, pairs),
        _list("Largest gains", count, gains),
        _list("Largest losses", "", losses),
    ]
    return [group for group in groups if group.first]


def rank_training_samples(rows: Sequence[Mapping[str, Any]]) -> list[SampleList]:
    """Return the best and the worst training samples of a step; no sample is in both lists."""
    known = [row for row in rows if finite(row.get("reward")) is not None]
    ranked = sorted(known, key=lambda row: finite(row.get("reward")) or 0.0, reverse=True)
    half = (len(ranked) + 1) // 2
    groups = [
        _list("Best", "", [_training_sample(row) for row in ranked[:half]]),
        _list("Worst", "", [_training_sample(row) for row in ranked[half:][::-1]]),
    ]
    return [group for group in groups if group.first]


def _training_sample(row: Mapping[str, Any]) -> tuple[str, str, ScoredText]:
    return visible(row.get("prompt_id")), visible(row.get("prompt")), _text(row, "completion")


def _list(title: str, note: str, items: Iterable[Any]) -> SampleList:
    items = list(items)
    return SampleList(title, note, items[:OPEN], items[OPEN : OPEN + FOLDED])


def _keyed(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, int], Mapping[str, Any]]]:
    seen: Counter[str] = Counter()
    for row in rows:
        prompt_id = str(row.get("prompt_id"))
        yield (prompt_id, seen[prompt_id]), row
        seen[prompt_id] += 1


def _text(row: Mapping[str, Any], key: str) -> ScoredText:
    parts, flags = row.get("parts"), row.get("flags")
    notes = [f"flag: {visible(flag)}" for flag in flags] if isinstance(flags, list) else []
    if (advantage := finite(row.get("advantage"))) is not None:
        notes.insert(0, f"advantage {advantage:+.2f}")
    return ScoredText(
        _continuation(row.get(key)),
        finite(row.get("reward")),
        [(visible(name), finite(value)) for name, value in parts.items()] if isinstance(parts, Mapping) else [],
        row.get("finish_reason") == "length",
        notes,
    )
