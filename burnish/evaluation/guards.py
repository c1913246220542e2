"""Alarms for a reward that rises while something that it does not measure gets worse.

In training, the first ``window`` steps are compared with the last. A change counts if the two means differ by more than
2 standard errors, computed from the spread of the metric from step to step within each window. That spread covers both
the sampling noise and the draw of new prompts at each step. (A window of one step has no spread, so any change counts.)
In a held-out evaluation, a change counts if its 95% interval excludes zero.

Texts may become as short as the true answers, and then as like one another, without an alarm: a model that learns to
answer in one word does both.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from burnish.evaluation.measurement import Measurement
from burnish.rewards.library.diversity import distinct_n, repeat_share
from burnish.text import words
from burnish.types import Prompt

REMEDY = "read the samples; add the 'repetition' reward, raise algorithm.kl.coefficient, or keep an earlier checkpoint"
SAME_ANSWER = 0.5
"""Share of the samples that may be one text, unless as many true answers are one."""
LENGTH_REMEDY = "length alone moves many rewards; read the samples, add 'length_band', or raise guards.length_drift"


def text_diversity(texts: Sequence[str]) -> dict[str, float]:
    """Return the diversity metrics of a step's texts, each in [0, 1].

    distinct_1 and distinct_2 are over all texts (1: no word or pair of words occurs twice), longest_repeat is the mean
    over texts (0: no text repeats a word, 1: every text is one word repeated).
    """
    tokens = [words(text) for text in texts]
    return {
        "diversity/distinct_1": distinct_n(tokens, 1),
        "diversity/distinct_2": distinct_n(tokens, 2),
        "diversity/longest_repeat": fmean(map(repeat_share, tokens)) if tokens else 0.0,
    }


@dataclass(frozen=True, slots=True)
class TrueTexts:
    """The true answers to the held-out prompts; infinite where a prompt has none, so that every change counts.

    Attributes:
        length: their mean length in tokens.
        distinct_2: of all of them together.
    """

    length: float = math.inf
    distinct_2: float = math.inf

    @classmethod
    def of(cls, prompts: Sequence[Prompt], measured: Measurement) -> TrueTexts:
        """Return those of the prompts of a measurement, which knows their lengths."""
        texts = [prompt.reference for prompt in prompts if prompt.reference]
        if len(texts) < len(prompts) or len(measured.truths) < len(prompts):
            return cls()
        return cls(fmean(truth.tokens for truth in measured.truths), distinct_n(map(words, texts), 2))

    def as_alike(self, distinct_2: float, length: float, drift: float) -> bool:
        """Whether texts of this distinct-2 and mean length are as short as these, and no more like one another.

        Where texts are longer, as with reasoning before a number, the true answers do not show what is normal.
        """
        return distinct_2 >= self.distinct_2 and length <= self.length * (1 + drift)


@dataclass(frozen=True, slots=True)
class Trend:
    """Means of a metric over the first and the last window, and the standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def rose(self) -> bool:
        return self.after - self.before > 2 * self.error

    @property
    def fell(self) -> bool:
        return self.before - self.after > 2 * self.error

    @property
    def share(self) -> str:
        """The change relative to the beginning, such as "(-50%)"."""
        return f" ({self.after / self.before - 1:+.0%})" if self.before > 0 else ""


class TrendRows:
    """The rows of a run that its trends need, added one by one: the first and the last ``window`` that have all keys.

    However long the run, the trends of ``rows`` are those of all rows.
    """

    def __init__(self, keys: Sequence[str], window: int) -> None:
        self.keys, self.window = tuple(keys), max(window, 0)
        self._first: list[Mapping[str, Any]] = []
        self._last: deque[Mapping[str, Any]] = deque(maxlen=self.window)

    def clear(self) -> None:
        """Begin again without rows."""
        self._first.clear()
        self._last.clear()

    def add(self, row: Mapping[str, Any]) -> None:
        if all(key in row for key in self.keys):
            (self._first if len(self._first) < self.window else self._last).append(row)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows, oldest first."""
        return [*self._first, *self._last]


def trends(history: Sequence[Mapping[str, Any]], keys: Sequence[str], window: int) -> list[Trend]:
    """Return each metric's trend over the rows that have all of them: flat with fewer than two windows of rows."""
    rows = [[float(row[key]) for key in keys] for row in history if all(key in row for key in keys)]
    if window < 1 or len(rows) < 2 * window:
        return [Trend(0.0, 0.0, 0.0)] * len(keys)
    columns = []
    for column in range(len(keys)):
        first, last = ([row[column] for row in part] for part in (rows[:window], rows[-window:]))
        error = math.sqrt((variance(first) + variance(last)) / window) if window > 1 else 0.0
        columns.append(Trend(fmean(first), fmean(last), error))
    return columns


def diversity_alarm(
    history: Sequence[Mapping[str, Any]],
    *,
    drop: float,
    window: int,
    truth: TrueTexts = TrueTexts(),
    drift: float = 0.0,
) -> str | None:
    """Return a warning if the reward has risen while distinct-2 has lost more than the share ``drop``, else None.

    ``history`` has rows of metrics, oldest first; those without both numbers are skipped. ``window`` is the number of
    rows averaged at each end. Texts up to 1 + ``drift`` times as long as the true answers are compared with these.
    """
    reward, variety = trends(history, ("reward/mean", "diversity/distinct_2"), window)
    if not (reward.rose and variety.before > 0 and variety.after < variety.before * (1 - drop)):
        return None
    lengths = [row["length/mean"] for row in history[-window:] if "length/mean" in row]
    if lengths and truth.as_alike(variety.after, fmean(lengths), drift):
        return None
    return (
        f"the reward rose from {reward.before:.3g} to {reward.after:.3g} while distinct-2 fell from "
        f"{variety.before:.3f} to {variety.after:.3f}{variety.share}: the policy may be gaming the reward by repeating "
        f"itself; {REMEDY}"
    )


def length_alarm(
    history: Sequence[Mapping[str, Any]], *, drift: float, window: int, truth: TrueTexts = TrueTexts()
) -> str | None:
    """Return a warning if the reward has risen while texts became 1 + ``drift`` times as long or as short, else None.

    Length alone moves many rewards, and ever longer answers are the oldest way to game one. If the length is meant to
    change, raise ``drift``, or set it to 0 to switch the alarm off.
    """
    reward, length = trends(history, ("reward/mean", "length/mean"), window)
    changed = drift > 0 and (length.rose or length.fell) and _drifted(length.before, length.after, drift, truth)
    if not (reward.rose and changed):
        return None
    return (
        f"the reward rose from {reward.before:.3g} to {reward.after:.3g} while the mean length went from "
        f"{length.before:.1f} to {length.after:.1f} tokens{length.share}: {LENGTH_REMEDY}"
    )


def part_alarm(history: Sequence[Mapping[str, Any]], part: str, *, drop: float, window: int) -> str | None:
    """Return a warning if the reward has risen while a part of weight 0 lost more than the share ``drop``."""
    reward, guard = trends(history, ("reward/mean", f"reward/{part}"), window)
    if not (reward.rose and guard.fell and guard.before - guard.after > drop * abs(guard.before)):
        return None
    return (
        f"the reward rose from {reward.before:.3g} to {reward.after:.3g} while '{part}', which is not trained on, fell "
        f"from {guard.before:.3g} to {guard.after:.3g}{guard.share}: the policy may be gaming the reward; {REMEDY}"
    )


def guard_alarms(
    evaluation: Mapping[str, Mapping[str, Any]],
    *,
    guards: Sequence[str] = (),
    drop: float = 0.1,
    metric_drop: float = 0.0,
    length_drift: float = 0.0,
    truth: TrueTexts = TrueTexts(),
) -> dict[str, str]:
    """Return key -> warning for what got worse while the held-out reward rose (its interval lies above zero).

    Args:
        evaluation: result of ``evaluation.held_out.compare``.
        guards: its keys that must not get worse.
        drop: share that distinct-2 may lose.
        metric_drop: share that a guard may lose even if its interval lies on the bad side of zero.
        length_drift: as in ``length_alarm``.
        truth: the true answers to the held-out prompts.
    """
    reward = evaluation.get("reward")
    if not reward or not reward["interval"][0] > 0:
        return {}
    alarms: dict[str, str] = {}
    rose = f"held-out reward rose by {reward['difference']:.3g} while"
    variety, length = evaluation.get("distinct_2"), evaluation.get("length")
    alike = variety and length and truth.as_alike(variety["after"], length["after"], length_drift)
    if variety and variety["after"] < variety["before"] * (1 - drop) and not alike:
        alarms["distinct_2"] = (
            f"{rose} held-out distinct-2 fell from {variety['before']:.3f} to {variety['after']:.3f} "
            f"({variety['after'] / variety['before'] - 1:+.0%}): part of the gain is repetition; {REMEDY}"
        )
    for key in guards:
        if (entry := evaluation.get(key)) and key not in alarms and _worse(entry, metric_drop):
            low, high = entry["interval"]
            name = key.removeprefix("metric/").removeprefix("reward/")
            alarms[key] = (
                f"{rose} held-out '{name}', which is not trained on, got worse: from {entry['before']:.3g} to "
                f"{entry['after']:.3g} (95% interval of the difference {low:.3g} to {high:.3g}): the policy may be "
                f"gaming the reward; {REMEDY}"
            )
    changed = length and (length["interval"][0] > 0 or length["interval"][1] < 0)
    if length and changed and length_drift > 0 and _drifted(length["before"], length["after"], length_drift, truth):
        alarms["length"] = (
            f"{rose} the mean length of held-out texts went from {length['before']:.1f} to {length['after']:.1f} "
            f"tokens: {LENGTH_REMEDY}"
        )
    return alarms


def same_answer_alarm(measured: Measurement) -> str | None:
    """Return a warning if most prompts get one answer, and far fewer of the true answers are equal.

    A policy that always gives the commonest label of a classification earns a reward above chance.
    """
    texts, truths = (
        Counter(" ".join(text.split()) for text in part)
        for part in ([one.text for one in measured.samples], [one.reference or "" for one in measured.samples])
    )
    if len(truths) < 2:
        return None
    (answer, count), (truth, true_count) = texts.most_common(1)[0], truths.most_common(1)[0]
    share, true_share = count / texts.total(), true_count / truths.total()
    if share <= SAME_ANSWER or share <= 1.5 * true_share:
        return None
    return (
        f"{share:.0%} of the held-out answers are {answer!r:.40}, but the commonest true answer, {truth!r:.40}, belongs "
        f"to {true_share:.0%} of the prompts: the policy may ignore the question. Raise sampling.prompts_per_step, "
        "lower the learning rate, or add an entropy bonus (algorithm.entropy)"
    )


def evaluation_alarms(evaluation: Mapping[str, Mapping[str, Any]], **limits: Any) -> list[str]:
    """Return the warnings of ``guard_alarms``, and one if corpus BLEU fell (its interval lies below zero), whatever the
    reward did."""
    alarms = guard_alarms(evaluation, **limits)
    bleu = evaluation.get("bleu")
    if bleu and bleu["interval"][1] < 0:
        alarms["bleu"] = (
            f"held-out corpus BLEU fell from {bleu['before']:.2f} to {bleu['after']:.2f} (95% interval of the "
            f"difference {bleu['interval'][0]:.2f} to {bleu['interval'][1]:.2f}): the policy moved away from the true "
            "answers; raise algorithm.kl.coefficient, or reward agreement with them (such as 'bleu')"
        )
    return list(alarms.values())


def _worse(entry: Mapping[str, Any], drop: float) -> bool:
    """Whether a held-out metric got worse beyond chance, and by more than the share ``drop`` of its first value."""
    low, high = entry["interval"]
    lost = entry["before"] - entry["after"]
    if entry.get("better") == "lower":
        low, high, lost = -high, -low, -lost
    return bool(high < 0 and lost > drop * abs(entry["before"]))


def _drifted(before: float, after: float, drift: float, truth: TrueTexts) -> bool:
    if before > after >= truth.length / (1 + drift):
        return False
    return max(before, after) > min(before, after) * (1 + drift)
