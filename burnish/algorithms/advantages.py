"""Advantages from rewards. Each function takes rewards [..., P, G] and returns advantages of the same shape.

Leading dimensions are independent estimates, which is how ``verify`` runs a hundred thousand of them at once.
"""

from __future__ import annotations

from torch import Tensor


def reinforce(rewards: Tensor, baseline: float = 0.0) -> Tensor:
    """R(tau) as it stands: A_i = R_i (Williams 1992, REINFORCE without a baseline). ``baseline`` is not used."""
    return rewards


def moving_baseline(rewards: Tensor, baseline: float = 0.0) -> Tensor:
    """A_i = R_i - b (Williams 1992, section 4). Unbiased as long as b does not depend on these samples.

    Args:
        baseline: b, the moving mean of the rewards of earlier steps.
    """
    return rewards - baseline


def leave_one_out(rewards: Tensor, baseline: float = 0.0) -> Tensor:
    """RLOO: A_i = R_i - mean of the other G-1 samples of the prompt (arXiv 2402.14740, section 3). Needs G >= 2."""
    group = _group_size(rewards)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (group - 1)
    return rewards - others


def group_normalised(rewards: Tensor, baseline: float = 0.0, epsilon: float = 1e-4) -> Tensor:
    """GRPO: A_i = (R_i - mean_G) / (std_G + epsilon) (arXiv 2402.03300, section 4.1.2). Needs G >= 2.

    The standard deviation is the unbiased one, divisor G-1, and epsilon is added to it, as in TRL. Both the division and
    the mean that contains the sample itself bias the gradient; a group whose rewards are all equal gives exactly zero.
    """
    _group_size(rewards)
    deviation = rewards - rewards.mean(-1, keepdim=True)
    # The mean of equal numbers can miss them by a rounding error, which the division would blow up to order one.
    equal = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return (deviation / (rewards.std(-1, keepdim=True) + epsilon)).masked_fill(equal, 0.0)


def _group_size(rewards: Tensor) -> int:
    group = rewards.shape[-1]
    if group < 2:
        raise ValueError(f"a group needs at least 2 samples to be compared, this one has {group}")
    return group
