"""Alarms: the reward rises while something that it does not measure gets worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from burnish.rewards.diversity import distinct_n, repeat_share, words

REMEDY = "read the samples; add the 'repetition' reward, raise algorithm.kl.coefficient, or keep an earlier checkpoint"


def text_diversity(texts: Sequence[str]) -> dict[str, float]:
    """A step's texts, as metrics: distinct-1 and distinct-2 over all of them, and the mean share of the longest repeat.

    Keys ``diversity/distinct_1``, ``diversity/distinct_2`` (1: no word or pair of words occurs twice in all texts) and
    ``diversity/longest_repeat`` (0: no text repeats a word of its own, 1: every text is one word over and over).
    """
    tokens = [words(text) for text in texts]
    return {
        "diversity/distinct_1": distinct_n(tokens, 1),
        "diversity/distinct_2": distinct_n(tokens, 2),
        "diversity/longest_repeat": fmean(map(repeat_share, tokens)) if tokens else 0.0,
    }


def diversity_alarm(history: Sequence[Mapping[str, Any]], *, drop: float, window: int) -> str | None:
    """The warning that the reward has risen while distinct-2 has collapsed, or None.

    Compares the first ``window`` steps with the last. The reward has risen where the window means differ by more than
    2 standard errors; that error comes from the spread of ``reward/mean`` from step to step within either window, which
    holds the sampling noise that ``reward/std`` knows of and also the draw of other prompts at every step, which it
    does not. (A window of one step has no spread: there any rise counts.) Distinct-2 must have fallen by more than
    ``drop`` of where it began.

    Args:
        history: rows of metrics, oldest first, with ``reward/mean`` and ``diversity/distinct_2``; rows that lack
            either are passed over.
        drop: share of the first distinct-2, between 0 and 1.
        window: steps averaged at either end. With fewer than twice as many rows there is no alarm.
    """
    keys = ("reward/mean", "diversity/distinct_2")
    rows = [(float(row[keys[0]]), float(row[keys[1]])) for row in history if all(key in row for key in keys)]
    if window < 1 or len(rows) < 2 * window:
        return None
    first, last = rows[:window], rows[-window:]
    reward_before, reward_after = fmean(row[0] for row in first), fmean(row[0] for row in last)
    error = 0.0
    if window > 1:
        error = math.sqrt((variance(row[0] for row in first) + variance(row[0] for row in last)) / window)
    before, after = fmean(row[1] for row in first), fmean(row[1] for row in last)
    if not (reward_after - reward_before > 2 * error and before > 0 and after < before * (1 - drop)):
        return None
    return (
        f"the reward rose from {reward_before:.3g} to {reward_after:.3g} while distinct-2 fell from {before:.3f} to "
        f"{after:.3f} ({after / before - 1:+.0%}): the policy may be gaming the reward by repeating itself; {REMEDY}"
    )


def evaluation_alarms(evaluation: Mapping[str, Mapping[str, Any]], *, drop: float = 0.1) -> list[str]:
    """Warnings drawn from a held-out comparison (``evaluation.held_out.compare``), worst first; none is the good case.

    Warns where the reward rose (its interval lies above zero) while distinct-2 fell by more than ``drop`` of where it
    began, and where corpus BLEU fell (its interval lies below zero).
    """
    alarms: list[str] = []
    reward, diversity, bleu = (evaluation.get(name) for name in ("reward", "distinct_2", "bleu"))
    if reward and diversity and reward["interval"][0] > 0 and diversity["after"] < diversity["before"] * (1 - drop):
        alarms.append(
            f"held-out reward rose by {reward['difference']:.3g} while held-out distinct-2 fell from "
            f"{diversity['before']:.3f} to {diversity['after']:.3f} "
            f"({diversity['after'] / diversity['before'] - 1:+.0%}): part of the gain is repetition; {REMEDY}"
        )
    if bleu and bleu["interval"][1] < 0:
        alarms.append(
            f"held-out corpus BLEU fell from {bleu['before']:.2f} to {bleu['after']:.2f} (95% interval of the "
            f"difference {bleu['interval'][0]:.2f} to {bleu['interval'][1]:.2f}): the policy moved away from the true "
            "answers; raise the weight of 'bleu' or algorithm.kl.coefficient"
        )
    return alarms
