"""Algorithms by name: each is an advantage function, a loss function and an aggregation."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.algorithms import advantages, losses, token_level_advantages
from burnish.algorithms.advantages import AdvantageFunction
from burnish.algorithms.losses import ClipFunction, LossFunction, RatioLimits
from burnish.algorithms.ops import Aggregation, RatioLevel
from burnish.algorithms.token_level_advantages import TokenAdvantages


@dataclass(frozen=True, slots=True)
class Preset:
    """One algorithm.

    Attributes:
        advantages: rewards [P, G] and the moving baseline -> advantages [P, G].
        loss: logprobs, log_ratio, advantages, all [T], and the limits of the ratio -> per-token loss [T].
        aggregation: how token losses add up, unless the recipe chooses another way.
        needs_group: whether it compares the samples of a prompt, so that G must be at least 2.
        unbiased: whether its expected gradient claims to be the policy gradient, which ``verify`` tests.
        paper, when: its source, and when to use it, in one line.
        why: reason of a bias by design.
        clipped: log_ratio, advantages and limits -> the tokens that the loss clips, below and above.
        ratio, limits: level and limits of the ratio; None if the loss has no ratio and allows no second update.
        needs_batch: whether it compares the samples of a step, so that P*G must be at least 2.
        refills: rounds in which groups of equal rewards are replaced by new ones.
        by_part: whether each reward part is normalised within its group before the parts are added up.
        critic: whether a value model gives the advantage of each token, in place of ``advantages``.
        paired: whether the advantages are those of a pair of samples, scaled as in DPO; needs the reference.
        token_level: token-level advantages, for rewards that come with tokens (``reward.credit``).
        why_completion_level: why it has none.
    """

    advantages: AdvantageFunction
    loss: LossFunction
    aggregation: Aggregation
    needs_group: bool
    unbiased: bool
    paper: str
    when: str
    why: str = ""
    clipped: ClipFunction = losses.no_clipped_tokens
    ratio: RatioLevel | None = None
    limits: RatioLimits = losses.DEFAULT_LIMITS
    needs_batch: bool = False
    refills: int = 0
    by_part: bool = False
    critic: bool = False
    paired: bool = False
    token_level: TokenAdvantages | None = None
    why_completion_level: str = ""

    @property
    def supports_token_rewards(self) -> bool:
        """Whether rewards of single tokens make its advantages differ within a text."""
        return self.critic or self.token_level is not None

    @property
    def clips(self) -> bool:
        return self.clipped is not losses.no_clipped_tokens

    @property
    def has_baseline(self) -> bool:
        return self.advantages is advantages.moving_baseline

    @property
    def has_dual_clip(self) -> bool:
        return self.loss is losses.clipped_ratio


PRESETS: dict[str, Preset] = {
    "reinforce": Preset(
        advantages.reinforce, losses.log_likelihood, "sequence_sum", False, True,
        "Williams 1992", "the textbook estimator, for comparison: its variance is high",
        token_level=token_level_advantages.token_reinforce,
    ),
    "reinforce_baseline": Preset(
        advantages.moving_baseline, losses.log_likelihood, "sequence_sum", False, True,
        "Williams 1992, section 4", "one sample per prompt: a moving mean of earlier rewards removes the offset",
        token_level=token_level_advantages.token_moving_baseline,
    ),
    "reinforce_pp": Preset(
        advantages.batch_normalised, losses.clipped_ratio, "token_mean", False, False,
        "arXiv 2501.03262", "one or few samples per prompt, rewards of one scale: no critic, steps of even size",
        why="divides by the step's deviation and by its token count; the mean contains the sample itself",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", needs_batch=True,
        token_level=token_level_advantages.token_batch_normalised,
    ),
    "rloo": Preset(
        advantages.leave_one_out, losses.log_likelihood, "sequence_sum", True, True,
        "arXiv 2402.14740", "several samples per prompt, and an unbiased gradient",
        token_level=token_level_advantages.token_leave_one_out,
    ),
    "grpo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2402.03300", "several samples per prompt, with rewards whose scale differs between prompts",
        why="divides by the group's deviation and by each length; the mean contains the sample itself",
        clipped=losses.tokens_with_clipped_gradient, ratio="token",
        token_level=token_level_advantages.token_group_normalised,
    ),
    "dr_grpo": Preset(
        advantages.group_centred, losses.clipped_ratio, "constant_length", True, False,
        "arXiv 2503.20783", "as grpo, without its bias towards some lengths and towards prompts of little spread",
        why="only its scale is off: the true gradient times (G-1)/G and divided by the longest length",
        clipped=losses.tokens_with_clipped_gradient, ratio="token",
        token_level=token_level_advantages.token_group_centred,
    ),
    "dapo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "token_mean", True, False,
        "arXiv 2503.14476", "right-or-wrong rewards: keeps exploring, and replaces groups of equal rewards",
        why="divides by the group's deviation and by the step's token count; the mean contains the sample itself",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", limits=RatioLimits(low=0.2, high=0.28), refills=3,
        token_level=token_level_advantages.token_group_normalised,
    ),
    "ppo": Preset(
        advantages.reinforce, losses.clipped_ratio, "token_mean", False, False,
        "arXiv 1707.06347", "long texts, one sample per prompt, several updates: a critic credits single tokens",
        why="relies on the critic's values, whitens over the step's tokens and divides by their count",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", critic=True,
    ),
    "gdpo": Preset(
        advantages.batch_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2601.05242", "several reward parts of different scale or spread: each counts by its weight alone",
        why="divides each part by its group's deviation, the sum by the step's, and by each length",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", by_part=True,
        why_completion_level="it normalises each part's reward of a whole text",
    ),
    "gspo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2507.18071", "several updates per batch, or mixtures of experts: clips whole texts instead of tokens",
        why="divides by the group's deviation and by each length, as grpo",
        clipped=losses.tokens_with_clipped_gradient, ratio="sequence_mean", limits=RatioLimits(low=3e-4, high=4e-4),
        why_completion_level="its ratio is that of the whole text and averages the advantages of its tokens",
    ),
    "cispo": Preset(
        advantages.group_normalised, losses.clipped_weight, "token_mean", True, False,
        "arXiv 2506.13585", "several updates per batch where rare tokens matter: no token loses its gradient",
        why="divides by the group's deviation and by the step's token count; off-policy, weights are capped",
        clipped=losses.tokens_with_clipped_weight, ratio="token", limits=RatioLimits(low=1.0, high=4.0),
        token_level=token_level_advantages.token_group_normalised,
    ),
    "sapo": Preset(
        advantages.group_normalised, losses.soft_gate, "sequence_mean", True, False,
        "arXiv 2511.20347", "several updates per batch, where the hard edge of a clip makes training unstable",
        why="divides by the group's deviation and by each length, as grpo; off-policy, the gate fades gradients",
        ratio="token", token_level=token_level_advantages.token_group_normalised,
    ),
    "online_dpo": Preset(
        advantages.best_and_worst, losses.log_likelihood, "sequence_sum", True, False,
        "arXiv 2402.04792", "a reward whose order is reliable but whose size is not, such as a reward model's",
        why="uses the order of the best and the worst reward, not their distance",
        paired=True, why_completion_level="it compares pairs of whole texts",
    ),
}  # fmt: skip
