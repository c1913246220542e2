"""The held-out examples of a supervised run that the report shows, each measured before and after training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.reports.page.samples import SampleList, rank_by_gain, visible
from burnish.reports.wording import finite

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MeasuredExample:
    """A prompt with labelled answers, and its figure before and after; ``sign`` is -1 if lower is better."""

    prompt: str
    answers: Sequence[tuple[str, str]]
    figure: str
    before: float
    after: float
    sign: int

    @property
    def gain(self) -> float:
        return self.sign * (self.after - self.before)


def measured_examples(texts: Sequence[Row], before: Sequence[Row], after: Sequence[Row]) -> list[SampleList]:
    """Return the first examples, the largest gains and the largest losses; those without a partner are left out."""
    firsts, lasts = dict(_keyed(before)), dict(_keyed(after))
    examples = []
    for key, row in _keyed(texts):
        first, last = _figure(firsts.get(key, {})), _figure(lasts.get(key, {}))
        answers = row.get("answers")
        if first is None or last is None or not isinstance(answers, dict):
            continue
        shown = [(visible(label), visible(text).strip()) for label, text in answers.items()]
        examples.append(MeasuredExample(visible(row.get("prompt")), shown, first[0], first[1], last[1], first[2]))
    return rank_by_gain(examples, "The first examples of the held-out side, not selected by result.", "examples", "")


def _figure(numbers: Row) -> tuple[str, float, int] | None:
    """Return name, value and sign of an example's figure, or None if it has none."""
    nll, tokens, margin = (finite(numbers.get(name)) for name in ("nll", "tokens", "margin"))
    if margin is not None:
        return "margin", margin, 1
    if nll is not None and tokens:
        return "nats per token", nll / tokens, -1
    good = finite(numbers.get("good"))
    reward = finite(numbers.get("good_reward" if good else "bad_reward"))
    return None if good is None or reward is None else ("implicit reward", reward, 1 if good else -1)


def _keyed(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, int], Row]]:
    seen: Counter[str] = Counter()
    for row in rows:
        unit = str(row.get("unit"))
        yield (unit, seen[unit]), row
        seen[unit] += 1
