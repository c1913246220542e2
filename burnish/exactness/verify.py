"""Verification of gradient estimators against the exact gradient of an enumerable world.

By sampling: an estimator's mean over many independent groups, with standard error and variance. By enumeration: its
expectation over all pairs of sequences (G = 2), which has no sampling error, so that a bias shows down to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.exactness import world as exact
from burnish.exactness.estimators import COEFFICIENT, Estimator, World, estimates, estimators

__all__ = ["Estimator", "Finding", "World", "as_rows", "estimates", "estimators", "targets", "verify"]

ROUNDING = 1e-9
CHUNK = 20_000
"""Estimates computed at once; bounds the memory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result for one estimator. Tensors are [V+1, V], like the logits.

    Attributes:
        bias: exact expectation with G = 2, minus the exact gradient.
        variance: of one estimate, summed over all components.
        deviation: largest distance of the sampled mean from the exact gradient, in standard errors.
        limit: bound of ``deviation`` by chance: 3 standard errors for a table of one number, more for many.
    """

    estimator: Estimator
    exact: Tensor
    mean: Tensor
    standard_error: Tensor
    bias: Tensor
    variance: float
    deviation: float
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether both tests are consistent with an unbiased estimator."""
        return bool(self.bias.abs().max() <= ROUNDING) and self.deviation <= self.limit

    @property
    def passed(self) -> bool:
        return self.agrees or not self.estimator.unbiased


def targets(world: World) -> dict[str, Tensor]:
    """Return the exact gradient of each objective that an estimator may target, [V+1, V] each."""
    logits = world.logits.detach().clone().requires_grad_()
    reward = exact.expected_reward(logits, world.sequences, world.rewards)
    reverse = exact.state_kl(logits, world.reference, world.sequences, forward=False)
    forward = exact.state_kl(logits, world.reference, world.sequences, forward=True)
    objectives = {
        "J": reward,
        "J - b KL": reward - COEFFICIENT * exact.sequence_kl(logits, world.reference, world.sequences),
        "J - b KL of states": reward - COEFFICIENT * reverse,
        "J - b forward KL of states": reward - COEFFICIENT * forward,
        "J + b entropy of states": reward + COEFFICIENT * exact.state_entropy(logits, world.sequences),
    }
    return {name: exact.gradient(objective, logits) for name, objective in objectives.items()}


def expectation(world: World, estimator: Estimator) -> Tensor:
    """Return the estimator's exact mean with G = 2, over all pairs of possible sequences; [(V+1) * V]."""
    chance = sampled_from(world, estimator)
    possible = chance.nonzero().squeeze(1)
    pairs = torch.cartesian_prod(possible, possible)
    return (chance[pairs[:, 0]] * chance[pairs[:, 1]]) @ estimates(world, estimator, pairs)


def sampled_from(world: World, estimator: Estimator) -> Tensor:
    """Return the probability of each sequence under the policy that the estimator samples from; [S]."""
    logits = world.behaviour if estimator.importance else world.logits.detach()
    return exact.probabilities(logits, world.sequences)


def claimed(world: World, estimator: Estimator, wanted: Mapping[str, Tensor], group: int) -> Tensor:
    """Return the gradient that the estimator claims to meet with groups of this size; [(V+1) * V]."""
    factor = estimator.scale(group, world.sequences.tokens.shape[1]) if estimator.scale else 1.0
    return factor * wanted[estimator.target].flatten()


def verify(
    world: World,
    rows: Iterable[Estimator] | None = None,
    *,
    samples: int = 100_000,
    group: int = 4,
    seed: int = 0,
) -> list[Finding]:
    """Compare ``samples`` independent estimates, each from ``group`` sequences, with the exact target of each row."""
    wanted = targets(world)
    findings = []
    for estimator in estimators() if rows is None else rows:
        generator = torch.Generator().manual_seed(seed)
        first = torch.zeros(world.logits.numel(), dtype=torch.float64)
        second = torch.zeros_like(first)
        chance = sampled_from(world, estimator)
        target = claimed(world, estimator, wanted, group)
        for begin in range(0, samples, CHUNK):
            count = min(CHUNK, samples - begin)
            index = torch.multinomial(chance, count * group, True, generator=generator).view(count, group)
            # Moments about the target lose no digits in a difference of large sums.
            distance = estimates(world, estimator, index) - target
            first += distance.sum(0)
            second += distance.square().sum(0)
        bias = expectation(world, estimator) - claimed(world, estimator, wanted, 2)
        findings.append(
            _finding(estimator, target, first / samples, second / samples, samples, bias, world.logits.shape)
        )
    return findings


def _finding(
    estimator: Estimator, target: Tensor, shift: Tensor, square: Tensor, samples: int, bias: Tensor, shape: torch.Size
) -> Finding:
    variance = (square - shift.square()).clamp_min(0) * samples / (samples - 1)
    error = (variance / samples).sqrt()
    varies = error > ROUNDING
    deviation = float((shift[varies].abs() / error[varies]).max()) if varies.any() else 0.0
    if bool((shift[~varies].abs() > ROUNDING).any()):
        deviation = math.inf
    # Each component counts as a separate test, although the rows of the softmax sum to zero and equal entries move
    # together. The limit keeps the false-alarm rate of all of them at that of one 3-sigma test.
    level = math.erfc(3 / math.sqrt(2)) / max(1, int(varies.sum()))
    limit = float(torch.special.ndtri(torch.tensor(1 - level / 2, dtype=torch.float64)))
    return Finding(
        estimator, target.view(shape), (target + shift).view(shape), error.view(shape),
        bias.view(shape), float(variance.sum()), deviation, limit,
    )  # fmt: skip


def as_rows(findings: Iterable[Finding], world: World) -> list[Mapping[str, object]]:
    """Return plain records for tables and JSON, one per component that is not identically zero."""
    names = [*world.vocabulary, "start"]
    rows: list[Mapping[str, object]] = []
    for finding in findings:
        for row, token in ((finding.exact != 0) | (finding.standard_error > ROUNDING)).nonzero().tolist():
            rows.append({
                "estimator": finding.estimator.name,
                "component": f"{world.vocabulary[token]}|{names[row]}",
                "exact": float(finding.exact[row, token]),
                "mean": float(finding.mean[row, token]),
                "standard_error": float(finding.standard_error[row, token]),
                "bias": float(finding.bias[row, token]),
            })  # fmt: skip
    return rows
