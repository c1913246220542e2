"""Algorithms by name: each is an advantage function, a loss function and a way of adding up."""

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
        advantages: rewards [P, G] and the moving baseline to advantages [P, G].
        loss: logprobs, log_ratio, advantages, all [T], and the ratio's limits to a loss a token [T].
        aggregation: how token losses add up; a recipe may choose another.
        needs_group: whether it compares the samples of one prompt, so that G must be at least 2.
        unbiased: whether its expected gradient claims to be the policy gradient; ``verify`` holds it to that.
        paper: where it comes from.
        when: when to use it, in one line.
        why: of a bias by design, the reason.
        clipped: log_ratio, advantages and limits to the tokens that the loss clips, below and above.
        ratio: of a token or of a sequence; None where the loss has no ratio, and so no second update on a batch.
        limits: of the ratio.
        needs_batch: whether it compares the samples of a step, so that P*G must be at least 2.
        refills: rounds in which groups whose rewards are all equal give way to others.
        by_part: whether each reward part is normalised within its group before the parts are added up.
        critic: whether a model of the reward still to come says each token's advantage, in place of ``advantages``.
        paired: whether the advantages are those of two samples to be told apart, in DPO's strength: needs the reference.
        token_level: the advantages a token where rewards came with tokens (``reward.credit``); None where it has none.
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
        """Whether it can tell a text's tokens apart by what came with them."""
        return self.critic or self.token_level is not None

    @property
    def clips(self) -> bool:
        """Whether the loss clips the ratio at all."""
        return self.clipped is not losses.no_clipped_tokens

    @property
    def has_baseline(self) -> bool:
        """Whether rewards are compared with a moving mean."""
        return self.advantages is advantages.moving_baseline

    @property
    def has_dual_clip(self) -> bool:
        """Whether the loss has a dual clip."""
        return self.loss is losses.clipped_ratio


PRESETS: dict[str, Preset] = {
    "reinforce": Preset(
        advantages.reinforce, losses.log_likelihood, "sequence_sum", False, True,
        "Williams 1992", "the textbook estimator, R(tau) as it stands: to compare with, its variance is high",
        token_level=token_level_advantages.token_reinforce,
    ),
    "reinforce_baseline": Preset(
        advantages.moving_baseline, losses.log_likelihood, "sequence_sum", False, True,
        "Williams 1992, section 4", "one sample a prompt: a moving mean of earlier rewards takes the offset away",
        token_level=token_level_advantages.token_moving_baseline,
    ),
    "reinforce_pp": Preset(
        advantages.batch_normalised, losses.clipped_ratio, "token_mean", False, False,
        "arXiv 2501.03262", "one or few samples a prompt, rewards of one scale: no critic, steps of even size",
        why="divides by the step's deviation and by its token count; the mean contains the sample itself",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", needs_batch=True,
        token_level=token_level_advantages.token_batch_normalised,
    ),
    "rloo": Preset(
        advantages.leave_one_out, losses.log_likelihood, "sequence_sum", True, True,
        "arXiv 2402.14740", "several samples a prompt, and the gradient shall be the true one",
        token_level=token_level_advantages.token_leave_one_out,
    ),
    "grpo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2402.03300", "several samples a prompt whose rewards differ in scale from prompt to prompt",
        why="divides by the group's deviation and by each length; the mean contains the sample itself",
        clipped=losses.tokens_with_clipped_gradient, ratio="token",
        token_level=token_level_advantages.token_group_normalised,
    ),
    "dr_grpo": Preset(
        advantages.group_centred, losses.clipped_ratio, "constant_length", True, False,
        "arXiv 2503.20783", "as grpo, without its pull on lengths and without favour for prompts of little spread",
        why="only its scale is off: the true gradient times (G-1)/G and divided by the longest length",
        clipped=losses.tokens_with_clipped_gradient, ratio="token",
        token_level=token_level_advantages.token_group_centred,
    ),
    "dapo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "token_mean", True, False,
        "arXiv 2503.14476", "rewards that are right or wrong: keeps exploring, and draws groups anew that teach nothing",
        why="divides by the group's deviation and by the step's token count; the mean contains the sample itself",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", limits=RatioLimits(low=0.2, high=0.28), refills=3,
        token_level=token_level_advantages.token_group_normalised,
    ),
    "ppo": Preset(
        advantages.reinforce, losses.clipped_ratio, "token_mean", False, False,
        "arXiv 1707.06347", "long texts, one sample a prompt, several updates: a critic says which token did it",
        why="believes the critic's values, whitens over the step's tokens and divides by their count",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", critic=True,
    ),
    "gdpo": Preset(
        advantages.batch_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2601.05242", "several reward parts of unlike scale or spread: each has its weight's say, whatever its units",
        why="divides each part by its group's deviation, the sum by the step's, and by each length",
        clipped=losses.tokens_with_clipped_gradient, ratio="token", by_part=True,
        why_completion_level="it normalises each part's number of a whole text",
    ),
    "gspo": Preset(
        advantages.group_normalised, losses.clipped_ratio, "sequence_mean", True, False,
        "arXiv 2507.18071", "several updates on each batch, or mixtures of experts: whole texts are clipped, not tokens",
        why="divides by the group's deviation and by each length, as grpo",
        clipped=losses.tokens_with_clipped_gradient, ratio="sequence_mean", limits=RatioLimits(low=3e-4, high=4e-4),
        why_completion_level="its ratio is that of the whole text and gives every token the mean of the tokens' advantages",
    ),
    "cispo": Preset(
        advantages.group_normalised, losses.clipped_weight, "token_mean", True, False,
        "arXiv 2506.13585", "several updates on each batch where rare tokens matter: none of them loses its gradient",
        why="divides by the group's deviation and by the step's token count; off-policy, weights are capped",
        clipped=losses.tokens_with_clipped_weight, ratio="token", limits=RatioLimits(low=1.0, high=4.0),
        token_level=token_level_advantages.token_group_normalised,
    ),
    "sapo": Preset(
        advantages.group_normalised, losses.soft_gate, "sequence_mean", True, False,
        "arXiv 2511.20347", "several updates on each batch, and a clip's hard edge makes training unsteady",
        why="divides by the group's deviation and by each length, as grpo; off-policy, the gate fades gradients",
        ratio="token",
        token_level=token_level_advantages.token_group_normalised,
    ),
    "online_dpo": Preset(
        advantages.best_and_worst, losses.log_likelihood, "sequence_sum", True, False,
        "arXiv 2402.04792", "a reward whose order can be trusted and whose size cannot, such as a reward model's",
        why="knows the best and the worst of the rewards, not how far apart they are",
        paired=True,
        why_completion_level="it makes pairs of whole texts",
    ),
}  # fmt: skip
