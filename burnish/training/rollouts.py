"""Rollouts: groups of completions, screened and scored, and the replacement of groups without spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from burnish.types import Completion, Group, Prompt, Scores, TokenRewards

REFILL_SEED = 3
"""Mixed into the seed that draws the prompts of a refill."""

Flags = tuple[str, ...]
Sample = Callable[[Sequence[Prompt], Sequence[int]], list[Group]]
"""From prompts and a seed to their groups."""
Screen = Callable[[Completion], Flags]
Score = Callable[[Sequence[Completion], Sequence[Flags]], Scores]


def flag_completion(completion: Completion) -> Flags:
    """Return the flags that go into samples.jsonl beside a completion: ``empty``, ``truncated``."""
    flags = {"empty": not completion.text.strip(), "truncated": completion.finish_reason == "length"}
    return tuple(name for name, raised in flags.items() if raised)


@dataclass(frozen=True)
class Rollouts:
    """P groups, the flags of their N completions and their scores, and what refilling them took.

    Attributes:
        refills: the rounds of refilling that were allowed; ``rounds`` of them were used.
        replaced: groups without spread that another group replaced.
        wasted: tokens that were sampled and are in no group.
    """

    groups: list[Group]
    flags: list[Flags]
    scores: Scores
    refills: int = 0
    rounds: int = 0
    replaced: int = 0
    wasted: int = 0

    @cached_property
    def completions(self) -> list[Completion]:
        """The N completions, group by group."""
        return _completions(self.groups)

    @cached_property
    def lengths(self) -> Tensor:
        """[N], tokens of each completion."""
        return torch.tensor([len(completion.token_ids) for completion in self.completions])

    @cached_property
    def sampler_logprobs(self) -> Tensor:
        """[T] float64, as recorded when the tokens were drawn."""
        logprobs = [logprob for completion in self.completions for logprob in completion.sampler_logprobs]
        return torch.tensor(logprobs, dtype=torch.float64)

    @cached_property
    def full_logprobs(self) -> Tensor:
        """[T] float64, of the same tokens under the full softmax, which a reference's are compared with."""
        masses = [mass for completion in self.completions for mass in completion.sampler_log_masses]
        return self.sampler_logprobs + torch.tensor(masses, dtype=torch.float64) if masses else self.sampler_logprobs

    @cached_property
    def truncated(self) -> Tensor:
        """[N] bool, completions that were cut at the limit of tokens."""
        return torch.tensor([completion.finish_reason == "length" for completion in self.completions])

    @cached_property
    def flat(self) -> list[int]:
        """Indices of the groups whose rewards are all equal."""
        return without_spread(self.scores, len(self.groups))

    def group_metrics(self) -> dict[str, float]:
        """Return the share of flat groups, if groups have two samples or more, and metrics of the refilling."""
        compared = len(self.completions) > len(self.groups)
        metrics: dict[str, float] = {"flat_groups": len(self.flat) / len(self.groups)} if compared else {}
        if self.refills:
            metrics |= {
                "refill/rounds": self.rounds, "refill/replaced": self.replaced, "refill/flat": len(self.flat),
                "refill/wasted_tokens": self.wasted,
            }  # fmt: skip
        return metrics


def collect(
    sample: Sample, screen: Screen, score: Score, prompts: Sequence[Prompt], pool: Sequence[Prompt],
    seed: tuple[int, int], refills: int,
) -> Rollouts:  # fmt: skip
    """Sample groups of the prompts, screen and score them; ``pool`` has all prompts, ``seed`` is seed and step.

    In at most ``refills`` rounds, groups whose rewards are all equal are replaced by groups of other prompts that are
    not (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2; the paper sets no bound). Groups that are still flat
    then stay, so that a step always has P groups.
    """
    groups = list(sample(prompts, seed))
    flags = [screen(completion) for completion in _completions(groups)]
    scores = score(_completions(groups), flags)
    rounds = replaced = wasted = 0
    for number in range(1, refills + 1):
        flat = without_spread(scores, len(groups))
        if not flat:
            break
        rounds = number
        fresh = sample(refill_prompts(pool, len(flat), seed, number), (*seed, number))
        fresh_flags = [screen(completion) for completion in _completions(fresh)]
        fresh_scores = score(_completions(fresh), fresh_flags)
        useless = set(without_spread(fresh_scores, len(fresh)))
        useful = [index for index in range(len(fresh)) if index not in useless]
        swaps = list(zip(flat, useful, strict=False))  # as many as there are of both
        taken = {source for _, source in swaps}
        wasted += sum(_tokens(groups[target]) for target, _ in swaps)
        wasted += sum(_tokens(group) for index, group in enumerate(fresh) if index not in taken)
        replaced += len(swaps)
        scores = _swap_scores(scores, fresh_scores, len(groups), len(fresh), swaps)
        size = len(flags) // len(groups)
        for target, source in swaps:
            groups[target] = fresh[source]
            flags[target * size : (target + 1) * size] = fresh_flags[source * size : (source + 1) * size]
    return Rollouts(groups, flags, scores, refills, rounds, replaced, wasted)


def refill_prompts(pool: Sequence[Prompt], count: int, seed: tuple[int, int], number: int) -> list[Prompt]:
    """Return prompts for a round of refilling, a function of the arguments; none twice while there are enough."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed[0], REFILL_SEED, seed[1], number])))
    indices = generator.choice(len(pool), count, replace=count > len(pool))
    return [pool[index] for index in indices]


def without_spread(scores: Scores, groups: int) -> list[int]:
    """Return the indices of groups whose rewards are all equal, and whose tokens have none of their own."""
    total = np.asarray(scores.total).reshape(groups, -1)
    equal = total.max(-1) == total.min(-1)
    if scores.token_rewards is not None:
        earned = [bool(np.any(values)) for values in scores.token_rewards.per_token]
        equal &= ~np.array(earned).reshape(groups, -1).any(-1)
    return [int(index) for index in np.flatnonzero(equal)]


def _swap_scores(scores: Scores, fresh: Scores, groups: int, fresh_groups: int, swaps: list[tuple[int, int]]) -> Scores:
    def swap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        rows, others = np.array(ours).reshape(groups, -1), np.asarray(theirs).reshape(fresh_groups, -1)
        for target, source in swaps:
            rows[target] = others[source]
        return rows.reshape(-1)

    unnormalised = token_rewards = None
    if scores.unnormalised is not None and fresh.unnormalised is not None:
        unnormalised = swap(scores.unnormalised, fresh.unnormalised)
    if scores.token_rewards is not None and fresh.token_rewards is not None:
        per_token, others = list(scores.token_rewards.per_token), fresh.token_rewards.per_token
        size = len(per_token) // groups
        for target, source in swaps:
            per_token[target * size : (target + 1) * size] = others[source * size : (source + 1) * size]
        per_completion = swap(scores.token_rewards.per_completion, fresh.token_rewards.per_completion)
        token_rewards = TokenRewards(per_completion, tuple(per_token))
    return replace(
        scores, total=swap(scores.total, fresh.total), unnormalised=unnormalised, token_rewards=token_rewards,
        parts={name: swap(values, fresh.parts[name]) for name, values in scores.parts.items()},
        passed={name: swap(reached, fresh.passed[name]) for name, reached in scores.passed.items()},
        logged={**fresh.logged, **{name: (*old, *fresh.logged.get(name, ())) for name, old in scores.logged.items()}},
        counts={**fresh.counts, **{name: old + fresh.counts.get(name, 0.0) for name, old in scores.counts.items()}},
    )  # fmt: skip


def _completions(groups: Sequence[Group]) -> list[Completion]:
    return [completion for group in groups for completion in group.completions]


def _tokens(group: Group) -> int:
    return sum(len(completion.token_ids) for completion in group.completions)
