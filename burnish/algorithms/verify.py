"""Every gradient estimator against the exact gradient of an enumerable world.

Two proofs for each. By sampling: the estimator's mean over many independent groups, with its standard error and
variance. By enumeration: its expectation over all pairs of sequences (G = 2), which has no sampling error at all, so that
a bias shows down to rounding. The same advantage, loss and aggregation functions run here as in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.algorithms import exact
from burnish.algorithms.kl import ESTIMATORS
from burnish.algorithms.ops import sequence_weights
from burnish.algorithms.presets import PRESETS, Preset

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class World:
    """A tabular policy, its reference, and a reward on every sequence.

    Attributes:
        logits, reference: [V+1, V].
        sequences: all of them.
        rewards: [S].
        vocabulary: the tokens' names.
    """

    logits: Tensor
    reference: Tensor
    sequences: exact.Sequences
    rewards: Tensor
    vocabulary: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estimator:
    """One row of the table.

    Attributes:
        target: what its mean is compared with: a key of ``targets``.
        unbiased: whether it claims to meet the target; one that does not is listed with its bias and the reason.
        why: of a bias by design, the reason.
    """

    name: str
    preset: Preset
    target: str = "J"
    unbiased: bool = True
    why: str = ""
    kl_estimator: str | None = None
    where: str = "reward"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one estimator. Tensors are [V+1, V], like the logits.

    Attributes:
        bias: the exact expectation with G = 2, minus the exact gradient.
        variance: of one estimate, summed over all components.
        deviation: largest distance of the sampled mean from the exact gradient, in standard errors.
        limit: what ``deviation`` may reach by chance: 3 standard errors for a table of one number, more for many.
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
        """Whether both proofs allow that it is unbiased."""
        return bool(self.bias.abs().max() <= ROUNDING) and self.deviation <= self.limit

    @property
    def passed(self) -> bool:
        return self.agrees or not self.estimator.unbiased


def estimators() -> list[Estimator]:
    """All presets, and the KL estimators in both places."""
    reasons = {"grpo": "divides by the group's deviation and by each length; the mean contains the sample itself"}
    rows = [
        Estimator(name, preset, unbiased=preset.unbiased, why=reasons.get(name, "")) for name, preset in PRESETS.items()
    ]
    base = PRESETS["reinforce"]
    return [
        *rows,
        Estimator("kl k1 in reward", base, "J - b KL", kl_estimator="k1"),
        Estimator("kl k2 in reward", base, "J - b KL", False, "the mean of k2 is not the KL", "k2"),
        Estimator("kl k3 in reward", base, "J - b KL", False, "the mean of k3 is the KL, its gradient is not", "k3"),
        Estimator("kl k1 in loss", base, "J", True, "meets J: the KL term pulls nowhere", "k1", "loss"),
        Estimator("kl k2 in loss", base, "J - b KL of states", True, "", "k2", "loss"),
        Estimator("kl k3 in loss", base, "J - b forward KL of states", True, "", "k3", "loss"),
    ]  # fmt: skip


def targets(world: World, coefficient: float) -> dict[str, Tensor]:
    """Exact gradients, [V+1, V] each, of what an estimator may aim at."""
    logits = world.logits.detach().clone().requires_grad_()
    reward = exact.expected_reward(logits, world.sequences, world.rewards)
    reverse = exact.state_kl(logits, world.reference, world.sequences, forward=False)
    forward = exact.state_kl(logits, world.reference, world.sequences, forward=True)
    objectives = {
        "J": reward,
        "J - b KL": reward - coefficient * exact.sequence_kl(logits, world.reference, world.sequences),
        "J - b KL of states": reward - coefficient * reverse,
        "J - b forward KL of states": reward - coefficient * forward,
    }
    found = {}
    for name, objective in objectives.items():
        (one,) = torch.autograd.grad(objective, logits, retain_graph=True)
        found[name] = torch.nan_to_num(one, nan=0.0)
    return found


def estimates(world: World, estimator: Estimator, index: Tensor, *, coefficient: float, baseline: float) -> Tensor:
    """One gradient estimate of the objective for each group; [E, (V+1) * V].

    Args:
        index: [E, G], which of the world's sequences each group drew.
    """
    count, group = index.shape
    picked = world.sequences[index.flatten()]
    mask, lengths = picked.mask, picked.lengths.view(count, group)
    logprobs = picked.token_logprobs(world.logits.detach()).requires_grad_()
    reference = picked.token_logprobs(world.reference)
    rewards = world.rewards[index]
    kl = ESTIMATORS[estimator.kl_estimator] if estimator.kl_estimator else None
    if kl and estimator.where == "reward":
        penalty = (kl(logprobs.detach(), reference) * mask).sum(-1).view(count, group)
        rewards = rewards - coefficient * penalty
    advantages = estimator.preset.advantages(rewards.view(count, 1, group), baseline).view(-1, 1).expand_as(logprobs)
    loss = estimator.preset.loss(logprobs, logprobs.detach(), advantages)
    if kl and estimator.where == "loss":
        loss = loss + coefficient * kl(logprobs, reference)
    weights = sequence_weights(lengths, estimator.preset.aggregation).reshape(-1, 1)
    (slope,) = torch.autograd.grad((weights * loss * mask).sum(), logprobs)
    # From d loss / d log p to d objective / d logits by hand: d log p(a|s) / d logit(v|s) = [v = a] - p(v|s).
    size = world.logits.numel()
    tokens = world.logits.shape[1]
    owner = torch.arange(count).repeat_interleave(group)[:, None].expand_as(mask)
    slope, owner = -slope[mask], owner[mask]
    row, token = picked.previous[mask], picked.tokens[mask]
    result = torch.zeros(count, size, dtype=torch.float64)
    result.index_put_((owner, row * tokens + token), slope, accumulate=True)
    spread = world.logits.softmax(-1)[row] * slope[:, None]
    columns = row[:, None] * tokens + torch.arange(tokens)
    result.index_put_((owner[:, None].expand_as(columns), columns), -spread, accumulate=True)
    return result


def expectation(world: World, estimator: Estimator, *, coefficient: float, baseline: float) -> Tensor:
    """The estimator's exact mean with G = 2, over all pairs of possible sequences; [(V+1) * V]."""
    chance = exact.probabilities(world.logits.detach(), world.sequences)
    possible = chance.nonzero().squeeze(1)
    pairs = torch.cartesian_prod(possible, possible)
    found = estimates(world, estimator, pairs, coefficient=coefficient, baseline=baseline)
    return (chance[pairs[:, 0]] * chance[pairs[:, 1]]) @ found


def verify(
    world: World,
    rows: Iterable[Estimator] | None = None,
    *,
    samples: int = 100_000,
    group: int = 4,
    seed: int = 0,
    coefficient: float = 0.1,
    baseline: float = 0.1,
    chunk: int = 20_000,
) -> list[Finding]:
    """Compares each estimator with its exact target.

    Args:
        samples: independent estimates, each from one group of ``group`` sequences.
        coefficient: b, of the rows with a KL term.
        baseline: b of ``reinforce_baseline``: any number that does not depend on the samples.
    """
    wanted = targets(world, coefficient)
    chance = exact.probabilities(world.logits.detach(), world.sequences)
    findings = []
    for estimator in estimators() if rows is None else rows:
        generator = torch.Generator().manual_seed(seed)
        first = torch.zeros(world.logits.numel(), dtype=torch.float64)
        second = torch.zeros_like(first)
        target = wanted[estimator.target].flatten()
        for begin in range(0, samples, chunk):
            count = min(chunk, samples - begin)
            index = torch.multinomial(chance, count * group, True, generator=generator).view(count, group)
            # Moments about the target, so that no digits are lost in the difference of large sums.
            distance = estimates(world, estimator, index, coefficient=coefficient, baseline=baseline) - target
            first += distance.sum(0)
            second += distance.square().sum(0)
        findings.append(_finding(world, estimator, target, first / samples, second / samples, samples,
                                 expectation(world, estimator, coefficient=coefficient, baseline=baseline)))  # fmt: skip
    return findings


def _finding(
    world: World, estimator: Estimator, target: Tensor, shift: Tensor, square: Tensor, samples: int, expected: Tensor
) -> Finding:
    variance = (square - shift.square()).clamp_min(0) * samples / (samples - 1)
    error = (variance / samples).sqrt()
    varies = error > ROUNDING
    deviation = float((shift[varies].abs() / error[varies]).max()) if varies.any() else 0.0
    if bool((shift[~varies].abs() > ROUNDING).any()):
        deviation = math.inf
    # Rows of the softmax sum to zero and equal entries move together, but each component is counted as a test of its own:
    # the limit keeps the whole row's false-alarm rate at that of one 3-sigma test.
    level = math.erfc(3 / math.sqrt(2)) / max(1, int(varies.sum()))
    limit = float(torch.special.ndtri(torch.tensor(1 - level / 2, dtype=torch.float64)))
    shape = world.logits.shape
    return Finding(
        estimator, target.view(shape), (target + shift).view(shape), error.view(shape),
        (expected - target).view(shape), float(variance.sum()), deviation, limit,
    )  # fmt: skip


def as_rows(findings: Iterable[Finding], world: World) -> list[Mapping[str, object]]:
    """Plain records, one for each component that is not identically zero, for tables and JSON."""
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
