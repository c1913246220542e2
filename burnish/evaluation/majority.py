"""The accuracy of majority votes: how often the commonest answer of k samples is right."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from burnish.evaluation.statistics import Array


@lru_cache(maxsize=1 << 16)  # a measurement is read several times
def majority_accuracy(groups: tuple[tuple[int, int], ...], silent: int, k: int) -> float:
    """Return maj@k of a prompt: the probability that the commonest answer of k of its n samples is right.

    The expectation is exact, over all subsets of k samples and, where several answers are equally common, over an even
    draw among them; so it is unbiased for k fresh samples, as pass@k is, and for k = n it is the vote of all samples.

    Args:
        groups: for each answer, how many samples give it and how many of these are right.
        silent: samples without an answer, which have no vote. A subset of them alone is wrong.
        k: from 1 to n.

    Let each sample join with probability k/n. Given that k join, every subset is equally likely, so the chance is a sum
    over the winner's votes m of products of binomial probabilities, divided by that of k joining. The state is the
    number of samples, of answers with m votes, and whether one of these has been drawn as the winner.
    """
    sizes = [size for size, _ in groups]
    n = sum(sizes) + silent
    share, total = k / n, 0.0
    for votes in range(1, min(k, max(sizes, default=0)) + 1):
        ties = k // votes
        # [drawn, samples, answers with as many votes]
        state = np.zeros((2, k + 1, ties + 1))
        state[0, 0, 0] = 1.0
        for size, right in groups:
            chances, after = _binomial(size, share), np.zeros_like(state)
            for joined in range(min(size + 1, votes, k + 1)):
                after[:, joined:] += chances[joined] * state[:, : k + 1 - joined]
            if size >= votes:
                tied = chances[votes] * state[:, : k + 1 - votes, :-1]
                after[:, votes:, 1:] += tied
                after[1, votes:, 1:] += right / size * tied[0]
            state = after
        none = _binomial(silent, share)
        for joined in range(min(silent, k) + 1):
            total += none[joined] * float((state[1, k - joined, 1:] / np.arange(1, ties + 1)).sum())
    # Rounded, so that equal chances of differing votes are not a difference.
    return round(total / float(_binomial(n, share)[k]), 12)


def _binomial(n: int, share: float) -> Array:
    """Return the probability of each of 0 to n successes."""
    from scipy.special import gammaln, xlog1py, xlogy

    x = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)
    return np.asarray(np.exp(ways + xlogy(x, share) + xlog1py(n - x, -share)))
