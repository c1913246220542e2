"""Search for attacks that succeed: a bandit that spends more on the families that work."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from burnish.safety.redteam.families import FAMILIES, Attack, word_attack
from burnish.safety.redteam.judge import AnswerJudge
from burnish.safety.redteam.measure import Answer, Trial, run_attacks
from burnish.safety.redteam.requests import HarmfulRequest

BATCH = 16
"""Attacks between two updates of the bandit: a model answers several prompts at once."""


class ThompsonBandit:
    """Thompson sampling over families, each with a Beta(1, 1) prior for its rate of success.

    Source: Thompson 1933; Chapelle and Li 2011, "An empirical evaluation of Thompson sampling".
    """

    def __init__(self, families: Sequence[str], seed: int = 0) -> None:
        self.counts = {family: [1, 1] for family in families}
        self._random = random.Random(seed)

    def choose(self, families: Sequence[str]) -> str:
        """Return the one of these families whose drawn rate is the highest."""
        return max(families, key=lambda family: self._random.betavariate(*self.counts[family]))

    def update(self, family: str, success: bool) -> None:
        """Count one trial."""
        self.counts[family][not success] += 1


def search(
    requests: Sequence[HarmfulRequest],
    families: Sequence[str],
    budget: int,
    answer: Answer,
    judge: AnswerJudge,
    seed: int = 0,
) -> list[Trial]:
    """Spend ``budget`` attacks on requests in random order, each in the family that the bandit chooses.

    The rates among these trials are biased, since the bandit follows its luck: ``attack_model`` has the unbiased ones. No
    text is asked twice; fewer attacks than ``budget`` are made if all wordings of all requests are used.
    """
    bandit = ThompsonBandit(families, seed)
    texts = _unused_wordings(requests, families, seed)
    trials: list[Trial] = []
    while len(trials) < budget and texts:
        batch: list[Attack] = []
        while len(batch) < min(BATCH, budget - len(trials)) and texts:
            wordings = texts.popleft()
            family = bandit.choose(list(wordings))
            batch.append(wordings[family].pop())
            if not wordings[family]:
                del wordings[family]
            if wordings:
                texts.append(wordings)
        for trial in run_attacks(batch, answer, judge):
            bandit.update(trial.attack.family, trial.success)
            trials.append(trial)
    return trials


def _unused_wordings(
    requests: Sequence[HarmfulRequest], families: Sequence[str], seed: int
) -> deque[dict[str, list[Attack]]]:
    """Return, for each request in random order, family -> its attacks in all wordings."""
    drawn = random.Random(seed).sample(list(requests), len(requests))
    return deque(
        {
            family: [word_attack(request, family, number) for number in range(len(FAMILIES[family]))]
            for family in families
        }
        for request in drawn
    )
