"""Which texts the report shows, and how text from a model is made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.reports.wording import number

SHOWN, MORE = 3, 9
"""Texts of a kind that are open to the eye, and those folded away after them."""
MAX_CHARACTERS = 4000

# Characters without a look of their own are shown by their name: control characters, and those that turn the reading
# order around, by which a text could pretend to be another. Marks that scripts need (joiners, LRM, RLM) stay.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Text:
    """One answer with its judgement."""

    text: str
    reward: float | None
    parts: list[tuple[str, float | None]]
    cut: bool
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers to one prompt before and after training."""

    label: str
    prompt: str
    reference: str
    before: Text
    after: Text

    @property
    def gain(self) -> float | None:
        if self.before.reward is None or self.after.reward is None:
            return None
        return self.after.reward - self.before.reward


@dataclass(frozen=True, slots=True)
class Shown:
    """A titled list of texts: the first ones open, the rest folded."""

    title: str
    note: str
    first: Sequence[Any]
    more: Sequence[Any]


def visible(text: Any) -> str:
    """Text from outside as a reader should see it; the template escapes it after this."""
    plain = "" if text is None else str(text)
    left = len(plain) - MAX_CHARACTERS
    plain = plain[:MAX_CHARACTERS].replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    plain = _HIDDEN.sub(lambda match: f"[U+{ord(match.group()):04X}]", plain)
    return plain + (f" … ({left:,} more characters)" if left > 0 else "")


def _set(text: Any) -> str:
    # A continuation begins with the space that parts it from its prompt; set by itself it needs none.
    return visible(text).removeprefix(" ")


def pairs(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Rows joined by prompt and by the sample's place among that prompt's rows; rows without a partner are left out."""
    partners = {key: row for key, row in _keyed(after)}
    found = []
    for key, row in _keyed(before):
        if (partner := partners.get(key)) is not None:
            label = visible(key[0]) + (f", sample {key[1] + 1}" if key[1] else "")
            prompt, reference = visible(row.get("prompt")), _set(row.get("reference"))
            found.append(Pair(label, prompt, reference, _text(row, "text"), _text(partner, "text")))
    return found


def compared(found: Sequence[Pair]) -> list[Shown]:
    """Biggest gains, biggest losses, and the first ones as they come, which nobody picked."""
    ranked = sorted((pair for pair in found if pair.gain), key=lambda pair: pair.gain or 0.0, reverse=True)
    gains = [pair for pair in ranked if (pair.gain or 0.0) > 0]
    losses = [pair for pair in reversed(ranked) if (pair.gain or 0.0) < 0]
    ties = len(found) - len(gains) - len(losses)
    count = f"{len(gains)} of {len(found)} answers gained, {len(losses)} lost" + (f", {ties} stayed." if ties else ".")
    groups = [
        _shown("Unpicked", "The first prompts of the held-out set, whatever they show.", found),
        _shown("Biggest gains", count, gains),
        _shown("Biggest losses", "", losses),
    ]
    return [group for group in groups if group.first]


def trained(rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Best and worst training samples of one step, each with its prompt. No sample is in both lists."""
    known = [row for row in rows if number(row.get("reward")) is not None]
    ranked = sorted(known, key=lambda row: number(row.get("reward")) or 0.0, reverse=True)
    half = (len(ranked) + 1) // 2
    groups = [
        _shown("Best", "", [_trained(row) for row in ranked[:half]]),
        _shown("Worst", "", [_trained(row) for row in ranked[half:][::-1]]),
    ]
    return [group for group in groups if group.first]


def _trained(row: Mapping[str, Any]) -> tuple[str, str, Text]:
    return visible(row.get("prompt_id")), visible(row.get("prompt")), _text(row, "completion")


def _shown(title: str, note: str, items: Iterable[Any]) -> Shown:
    items = list(items)
    return Shown(title, note, items[:SHOWN], items[SHOWN : SHOWN + MORE])


def _keyed(rows: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, int], Mapping[str, Any]]]:
    seen: dict[str, int] = {}
    keyed = []
    for row in rows:
        prompt_id = str(row.get("prompt_id"))
        keyed.append(((prompt_id, seen.get(prompt_id, 0)), row))
        seen[prompt_id] = seen.get(prompt_id, 0) + 1
    return keyed


def _text(row: Mapping[str, Any], key: str) -> Text:
    parts = row.get("parts")
    flags = row.get("flags")
    notes = [f"flag: {visible(flag)}" for flag in flags] if isinstance(flags, list) else []
    if (advantage := number(row.get("advantage"))) is not None:
        notes.insert(0, f"advantage {advantage:+.2f}")
    return Text(
        _set(row.get(key)),
        number(row.get("reward")),
        [(visible(name), number(value)) for name, value in parts.items()] if isinstance(parts, Mapping) else [],
        row.get("finish_reason") == "length",
        notes,
    )
