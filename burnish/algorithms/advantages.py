"""Advantage functions: rewards [..., P, G] to advantages of the same shape; leading dimensions are independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from burnish.algorithms.checks import check_baseline, check_equal_shapes, check_rank

if TYPE_CHECKING:
    from torch import Tensor

Baseline: TypeAlias = "float | Tensor"
"""One number, or one per prompt, [P, 1]."""

AdvantageFunction: TypeAlias = "Callable[[Tensor, Baseline], Tensor]"


def reinforce(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """REINFORCE without a baseline: A_i = R_i (Williams 1992). ``baseline`` is not used."""
    check_rank("rewards", rewards, "[..., P, G]", 2)
    return rewards


def moving_baseline(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """REINFORCE with a moving baseline: A_i = R_i - b (Williams 1992, section 4).

    Unbiased as long as b, the moving mean of the rewards of earlier steps, does not depend on these samples.
    """
    check_rank("rewards", rewards, "[..., P, G]", 2)
    check_baseline(baseline, rewards)
    return rewards - baseline


def leave_one_out(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """RLOO: A_i = R_i - mean of the other G-1 samples of the prompt (arXiv 2402.14740, section 3). Needs G >= 2."""
    group = _group_size(rewards)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (group - 1)
    # Equal numbers and their mean can differ by a rounding error; an all-equal group is exactly zero.
    return (rewards - others).masked_fill(_equal(rewards, (-1,)), 0.0)


def group_centred(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """Dr. GRPO: A_i = R_i - mean_G (arXiv 2503.20783, equation 4). Needs G >= 2.

    The mean contains the sample itself, so this is (G-1)/G times ``leave_one_out``.
    """
    _group_size(rewards)
    return (rewards - rewards.mean(-1, keepdim=True)).masked_fill(_equal(rewards, (-1,)), 0.0)


def group_normalised(rewards: Tensor, baseline: Baseline = 0.0, epsilon: float = 1e-4) -> Tensor:
    """GRPO: A_i = (R_i - mean_G) / (std_G + epsilon) (arXiv 2402.03300, section 4.1.2). Needs G >= 2.

    Deviation from the paper, as in TRL: epsilon is added to the standard deviation, which has the divisor G-1. The
    division and the mean that contains the sample itself both bias the gradient. Equal rewards give exactly zero.
    """
    _group_size(rewards)
    return _standardised(rewards, (-1,), epsilon)


def batch_normalised(rewards: Tensor, baseline: Baseline = 0.0, epsilon: float = 1e-4) -> Tensor:
    """REINFORCE++: A_i = (R_i - mean) / (std + epsilon), both over all P*G samples of the step. Needs P*G >= 2.

    arXiv 2501.03262, equation 8. The standard deviation has the divisor P*G - 1. Equal rewards give exactly zero.
    """
    check_rank("rewards", rewards, "[..., P, G]", 2)
    if rewards.shape[-2] * rewards.shape[-1] < 2:
        raise ValueError("a step needs at least 2 samples to compare, but has 1")
    return _standardised(rewards, (-2, -1), epsilon)


def best_and_worst(rewards: Tensor, baseline: Baseline = 0.0) -> Tensor:
    """Online DPO's pair: +G/2 for the best sample of a prompt, -G/2 for the worst, 0 for the others. Needs G >= 2.

    The first of equal samples counts; a group of equal rewards has no pair and gives 0. With ``sequence_sum`` this is
    2 / beta times DPO's gradient at its start, the mean over prompts; ``scale_as_dpo`` gives DPO's gradient elsewhere.
    """
    group = _group_size(rewards)
    best, worst = rewards.argmax(-1, keepdim=True), rewards.argmin(-1, keepdim=True)
    signs = torch.zeros_like(rewards).scatter(-1, best, group / 2).scatter(-1, worst, -group / 2)
    return signs.masked_fill(_equal(rewards, (-1,)), 0.0)


def scale_as_dpo(advantages: Tensor, ratios: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Scale advantages [..., P, G] of ``best_and_worst`` to those of DPO's gradient on the policy's own samples.

    The gradient of -log sigmoid(beta (h_best - h_worst)) is -beta sigmoid(-beta (h_best - h_worst)) times that of
    log pi(best) - log pi(worst) (arXiv 2305.18290, section 4). On the policy's own samples it is a policy gradient with
    these advantages, so that online DPO (arXiv 2402.04792, algorithm 1) needs no training step of its own.

    Args:
        ratios: log-ratios h [..., P, G], the sum over a sample's tokens of log pi - log pi_ref.
    Returns:
        The advantages, and the margins beta (h_best - h_worst) [..., P]; NaN for groups without a pair.
    """
    check_rank("advantages", advantages, "[..., P, G]", 2)
    check_equal_shapes(advantages=advantages, ratios=ratios)
    best, worst = advantages.argmax(-1, keepdim=True), advantages.argmin(-1, keepdim=True)
    margins = beta * (ratios.gather(-1, best) - ratios.gather(-1, worst))
    scaled = 2 * beta * (-margins).sigmoid() * advantages
    has_pair = (advantages != 0).any(-1)
    return scaled, margins.squeeze(-1).masked_fill(~has_pair, float("nan"))


def _standardised(rewards: Tensor, over: tuple[int, ...], epsilon: float) -> Tensor:
    deviation = rewards - rewards.mean(over, keepdim=True)
    # The mean of equal numbers can be off by a rounding error, which the division would raise to order one.
    scaled = deviation / (rewards.std(over, keepdim=True) + epsilon)
    return scaled.masked_fill(_equal(rewards, over), 0.0)


def _equal(rewards: Tensor, over: tuple[int, ...]) -> Tensor:
    return rewards.amax(over, keepdim=True) == rewards.amin(over, keepdim=True)


def _group_size(rewards: Tensor) -> int:
    check_rank("rewards", rewards, "[..., P, G]", 2)
    group = rewards.shape[-1]
    if group < 2:
        raise ValueError(f"a group needs at least 2 samples to compare, but has {group}")
    return group
