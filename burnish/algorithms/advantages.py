"""Advantages from rewards. Each function takes rewards [..., P, G] and returns advantages of the same shape.

Leading dimensions are independent estimates, which is how ``verify`` runs a hundred thousand of them at once, and how
rewards-to-go are compared position by position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Baseline = float | Tensor
"""One number, or one a prompt, [P, 1]."""

AdvantageFunction = Callable[[Tensor, Baseline], Tensor]


def reinforce(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """R(tau) as it stands: A_i = R_i (Williams 1992, REINFORCE without a baseline). ``baseline`` is not used."""
    return rewards


def moving_baseline(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """A_i = R_i - b (Williams 1992, section 4). Unbiased as long as b does not depend on these samples.

    Args:
        baseline: b, the moving mean of the rewards of earlier steps; or [P, 1], that of each prompt's own.
    """
    return rewards - baseline


def leave_one_out(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """RLOO: A_i = R_i - mean of the other G-1 samples of the prompt (arXiv 2402.14740, section 3). Needs G >= 2."""
    group = _group_size(rewards)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (group - 1)
    return rewards - others


def group_centred(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """Dr. GRPO: A_i = R_i - mean_G (arXiv 2503.20783, equation 4). Needs G >= 2.

    The mean contains the sample itself, so this is (G-1)/G times ``leave_one_out``.
    """
    _group_size(rewards)
    # Of equal numbers too the mean can be off by a rounding error; an all-equal group is exactly zero.
    return (rewards - rewards.mean(-1, keepdim=True)).masked_fill(_equal(rewards, (-1,)), 0.0)


def group_normalised(rewards: Tensor, baseline: Baseline = 0.0, epsilon: float = 1e-4) -> Tensor:
    """GRPO: A_i = (R_i - mean_G) / (std_G + epsilon) (arXiv 2402.03300, section 4.1.2). Needs G >= 2.

    The standard deviation is the unbiased one, divisor G-1, and epsilon is added to it, as in TRL. Both the division and
    the mean that contains the sample itself bias the gradient; a group whose rewards are all equal gives exactly zero.
    """
    _group_size(rewards)
    return _standardised(rewards, (-1,), epsilon)


def batch_normalised(rewards: Tensor, baseline: Baseline = 0.0, epsilon: float = 1e-4) -> Tensor:
    """REINFORCE++: A_i = (R_i - mean) / (std + epsilon), both over all P*G samples of the step (arXiv 2501.03262,
    equation 8). Needs P*G >= 2.

    The standard deviation has the divisor P*G - 1. Equal rewards give exactly zero.
    """
    if rewards.shape[-2] * rewards.shape[-1] < 2:
        raise ValueError("a step needs at least 2 samples to be compared, this one has 1")
    return _standardised(rewards, (-2, -1), epsilon)


def decoupled_normalised(parts: Tensor, weights: Tensor, epsilon: float = 1e-4) -> Tensor:
    """GDPO: each reward part is normalised within its group, then the weighted sum over the step's P*G samples (arXiv
    2601.05242). Needs G >= 2.

    A sum that is normalised once lets the part of the widest spread drown the others; here each has its weight's say. In
    a group whose numbers of a part are all equal that part says 0. Groups are divided by the deviation of divisor G and
    without an epsilon: the constant factor to divisor G-1 falls out again in the second step.

    Args:
        parts: [K, ..., P, G].
        weights: [K].
    Returns:
        [..., P, G].
    """
    _group_size(parts)
    deviation = parts - parts.mean(-1, keepdim=True)
    equal = _equal(parts, (-1,))
    spread = parts.std(-1, correction=0, keepdim=True).masked_fill(equal, 1.0)
    scores = (deviation / spread).masked_fill(equal, 0.0)
    return batch_normalised(torch.tensordot(weights, scores, 1), epsilon=epsilon)


@dataclass(frozen=True, slots=True)
class Advantage:
    """An advantage function by name.

    Attributes:
        needs_group: whether it compares the samples of one prompt, so that G must be at least 2.
    """

    function: AdvantageFunction
    needs_group: bool


ADVANTAGES: dict[str, Advantage] = {
    "reinforce": Advantage(reinforce, False),
    "moving_baseline": Advantage(moving_baseline, False),
    "leave_one_out": Advantage(leave_one_out, True),
    "group_centred": Advantage(group_centred, True),
    "group_normalised": Advantage(group_normalised, True),
    "batch_normalised": Advantage(batch_normalised, False),
}


def best_and_worst(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """Online DPO's pair: +G/2 for the best sample of a prompt, -G/2 for the worst, 0 for the others. Needs G >= 2.

    Of equal ones the first; a group whose rewards are all equal has no pair and gives zero. With ``sequence_sum`` this is
    2 / beta times the first gradient of DPO, the mean over prompts; ``scale_as_dpo`` makes it DPO's anywhere.
    """
    group = _group_size(rewards)
    best, worst = rewards.argmax(-1, keepdim=True), rewards.argmin(-1, keepdim=True)
    signs = torch.zeros_like(rewards).scatter(-1, best, group / 2).scatter(-1, worst, -group / 2)
    return signs.masked_fill(_equal(rewards, (-1,)), 0.0)


def scale_as_dpo(advantages: Tensor, ratios: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Makes ``best_and_worst`` the advantages of DPO's gradient on the policy's own samples, [..., P, G].

    The gradient of -log sigmoid(beta (h_best - h_worst)) is -beta sigmoid(-beta (h_best - h_worst)) times that of
    log pi(best) - log pi(worst) (arXiv 2305.18290, section 4). On samples of the policy itself it is a policy gradient with
    these advantages, so online DPO (arXiv 2402.04792, algorithm 1) needs no step of its own.

    Args:
        ratios: log-ratios h [..., P, G], the sum over a sample's tokens of log pi - log pi_ref.
        beta: strength of the pull towards the reference, above 0.
    Returns:
        Advantages, and the margins beta (h_best - h_worst) [..., P] of the pairs, not-a-number where there is none.
    """
    best, worst = advantages.argmax(-1, keepdim=True), advantages.argmin(-1, keepdim=True)
    margins = beta * (ratios.gather(-1, best) - ratios.gather(-1, worst))
    scaled = 2 * beta * (-margins).sigmoid() * advantages
    found = (advantages != 0).any(-1)
    return scaled, margins.squeeze(-1).masked_fill(~found, float("nan"))


def _standardised(rewards: Tensor, over: tuple[int, ...], epsilon: float) -> Tensor:
    deviation = rewards - rewards.mean(over, keepdim=True)
    # The mean of equal numbers can miss them by a rounding error, which the division would blow up to order one.
    scaled = deviation / (rewards.std(over, keepdim=True) + epsilon)
    return scaled.masked_fill(_equal(rewards, over), 0.0)


def _equal(rewards: Tensor, over: tuple[int, ...]) -> Tensor:
    return rewards.amax(over, keepdim=True) == rewards.amin(over, keepdim=True)


def _group_size(rewards: Tensor) -> int:
    group = rewards.shape[-1]
    if group < 2:
        raise ValueError(f"a group needs at least 2 samples to be compared, this one has {group}")
    return group
