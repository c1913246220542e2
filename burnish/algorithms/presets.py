"""Algorithms by name: each is an advantage function, a loss function and an aggregation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from burnish.algorithms import advantages, losses
from burnish.algorithms.ops import Aggregation

AdvantageFunction = Callable[[Tensor, float], Tensor]
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Preset:
    """One algorithm.

    Attributes:
        advantages: rewards [P, G] and the moving baseline to advantages [P, G].
        loss: logprobs, old_logprobs, advantages, all [T], to a loss a token [T].
        aggregation: how token losses add up; a recipe may choose another.
        needs_group: whether it compares the samples of one prompt, so that G must be at least 2.
        unbiased: whether its expected gradient claims to be the policy gradient; ``verify`` holds it to that.
        paper: where it comes from.
        when: when to use it, in one line.
    """

    advantages: AdvantageFunction
    loss: LossFunction
    aggregation: Aggregation
    needs_group: bool
    unbiased: bool
    paper: str
    when: str


PRESETS: dict[str, Preset] = {
    "reinforce": Preset(
        advantages.reinforce, losses.log_likelihood, "sequence_sum", False, True,
        "Williams 1992", "the textbook estimator, R(tau) as it stands: to compare with, its variance is high",
    ),
    "reinforce_baseline": Preset(
        advantages.moving_baseline, losses.log_likelihood, "sequence_sum", False, True,
        "Williams 1992, section 4", "one sample a prompt: a moving mean of earlier rewards takes the offset away",
    ),
    "rloo": Preset(
        advantages.leave_one_out, losses.log_likelihood, "sequence_sum", True, True,
        "arXiv 2402.14740", "several samples a prompt, and the gradient shall be the true one",
    ),
    "grpo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2402.03300", "several samples a prompt whose rewards differ in scale from prompt to prompt",
    ),
}  # fmt: skip
