"""Groups of completions with their scores; where an algorithm asks for it, groups that teach nothing are drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from burnish.types import Completion, Group, Prompt, Scores, TokenRewards

REFILL_SEED = 3
"""Mixed into the seed that draws the prompts of a refill."""

Sample = Callable[[Sequence[Prompt], Sequence[int]], list[Group]]
"""Prompts and a seed to groups."""

Score = Callable[[Sequence[Completion]], Scores]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """P groups with their scores, and what it took to fill them.

    Attributes:
        rounds: how often groups were drawn anew.
        replaced: groups without spread that made room for another.
        flat: groups without spread that are left.
        wasted: tokens that were sampled and are in no group.
    """

    groups: list[Group]
    scores: Scores
    rounds: int = 0
    replaced: int = 0
    flat: int = 0
    wasted: int = 0

    @property
    def completions(self) -> list[Completion]:
        return [completion for group in self.groups for completion in group.completions]

    def refill_metrics(self) -> dict[str, float]:
        return {
            "refill/rounds": self.rounds,
            "refill/replaced": self.replaced,
            "refill/flat": self.flat,
            "refill/wasted_tokens": self.wasted,
        }


def collect(
    sample: Sample, score: Score, prompts: Sequence[Prompt], pool: Sequence[Prompt], seed: tuple[int, int], refills: int
) -> Rollouts:
    """Groups of the prompts, scored. Groups whose rewards are all equal give way to groups of other prompts that are not
    (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2), in at most so many rounds; the paper sets no bound.

    Those that are left over then stay as they are, so that a step always has P groups.

    Args:
        pool: all prompts of the task.
        seed: of the run, and the step.
        refills: rounds at most; 0 takes what comes.
    """
    found = list(sample(prompts, seed))
    scores = score(_completions(found))
    rounds = replaced = wasted = 0
    for number in range(1, refills + 1):
        flat = without_spread(scores, len(found))
        if not flat:
            break
        rounds = number
        fresh = sample(refill_prompts(pool, len(flat), seed, number), (*seed, number))
        judged = score(_completions(fresh))
        useless = set(without_spread(judged, len(fresh)))
        useful = [place for place in range(len(fresh)) if place not in useless]
        swaps = list(zip(flat, useful, strict=False))  # as many as there are of both
        taken = {source for _, source in swaps}
        wasted += sum(_tokens(found[place]) for place, _ in swaps)
        wasted += sum(_tokens(group) for place, group in enumerate(fresh) if place not in taken)
        replaced += len(swaps)
        scores = _swapped(scores, judged, len(found), len(fresh), swaps)
        for place, source in swaps:
            found[place] = fresh[source]
    return Rollouts(found, scores, rounds, replaced, len(without_spread(scores, len(found))), wasted)


def refill_prompts(pool: Sequence[Prompt], count: int, seed: tuple[int, int], number: int) -> list[Prompt]:
    """Prompts for a round of refilling, a function of the arguments alone; no prompt twice while there are enough."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed[0], REFILL_SEED, seed[1], number])))
    places = generator.choice(len(pool), count, replace=count > len(pool))
    return [pool[place] for place in places]


def without_spread(scores: Scores, groups: int) -> list[int]:
    """The groups whose rewards are all equal."""
    total = np.asarray(scores.total).reshape(groups, -1)
    return [int(place) for place in np.flatnonzero(total.max(-1) == total.min(-1))]


def _swapped(scores: Scores, fresh: Scores, groups: int, fresh_groups: int, swaps: list[tuple[int, int]]) -> Scores:
    def of(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        rows, others = np.array(ours).reshape(groups, -1), np.asarray(theirs).reshape(fresh_groups, -1)
        for place, source in swaps:
            rows[place] = others[source]
        return rows.reshape(-1)

    parts = {name: of(values, fresh.parts[name]) for name, values in scores.parts.items()}
    plain = (
        None
        if scores.unnormalised is None or fresh.unnormalised is None
        else of(scores.unnormalised, fresh.unnormalised)
    )
    tokens = None
    if scores.token_rewards is not None and fresh.token_rewards is not None:
        gained = list(scores.token_rewards.per_token)
        size, fresh_size = len(gained) // groups, len(fresh.token_rewards.per_token) // fresh_groups
        for place, source in swaps:
            taken = fresh.token_rewards.per_token[source * fresh_size : (source + 1) * fresh_size]
            gained[place * size : (place + 1) * size] = taken
        tokens = TokenRewards(
            of(scores.token_rewards.per_completion, fresh.token_rewards.per_completion), tuple(gained)
        )
    passed = {name: of(reached, fresh.passed[name]) for name, reached in scores.passed.items()}
    total = of(scores.total, fresh.total)
    return replace(scores, total=total, parts=parts, unnormalised=plain, token_rewards=tokens, passed=passed)


def _completions(groups: Sequence[Group]) -> list[Completion]:
    return [completion for group in groups for completion in group.completions]


def _tokens(group: Group) -> int:
    return sum(len(completion.token_ids) for completion in group.completions)
