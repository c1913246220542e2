"""Credit assignment: from the scores of a step's completions to an advantage for each of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.advantages import Baseline, scale_as_dpo
from burnish.algorithms.credit_assignment import reward_to_go
from burnish.algorithms.ops import pad_by_sequence, sum_by_sequence
from burnish.algorithms.presets import Preset
from burnish.algorithms.token_level_advantages import mean_return
from burnish.errors import BurnishError
from burnish.recipe.algorithm import Algorithm, pair_beta
from burnish.run.folder import Checkpoint
from burnish.training.batching import TokenBudget, evaluate_tokens, microbatches
from burnish.training.critic import Critic, explained_variance, token_credit
from burnish.training.metrics import pair_metrics
from burnish.training.rollouts import Rollouts
from burnish.types import Group, Scores

DECAY = 0.9
"""Share of a moving mean that stays when new rewards come in."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of a step's completions after shaping.

    Attributes:
        whole: [N], what counts for a completion as a whole.
        tokens: [T], what was earned with each token; None where every reward counts for whole completions.
        penalties: [T], what the KL term takes from each token's reward.
        group_size: G.
    """

    whole: Tensor
    tokens: Tensor | None
    penalties: Tensor
    group_size: int

    def by_group(self, lengths: Tensor) -> Tensor:
        """Return the rewards of whole completions less their KL penalties, [P, G]."""
        return (self.whole - sum_by_sequence(self.penalties, lengths)).view(-1, self.group_size)

    def total(self, lengths: Tensor) -> Tensor:
        """Return all that a completion is trained on, [N]."""
        whole = self.by_group(lengths).flatten()
        return whole if self.tokens is None else whole + sum_by_sequence(self.tokens, lengths)


@dataclass(frozen=True, slots=True)
class Credit:
    """What each token of a step is trained with.

    Attributes:
        advantages: [T].
        completion_advantages: [N], one per completion, for samples.jsonl.
        tracked: [P, G], the rewards that a moving baseline follows.
        values, returns: [T], a critic's value before each token and its target; None without a critic.
        metrics: of this step.
    """

    advantages: Tensor
    completion_advantages: Tensor
    tracked: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class MovingBaseline:
    """A moving mean of earlier rewards, over all prompts or for each prompt.

    Independent of the step's samples, so subtracting it leaves the gradient unbiased (Williams 1992, section 4).
    """

    def __init__(self, *, per_prompt: bool = False) -> None:
        self.per_prompt = per_prompt
        self.mean = 0.0
        self.prompt_means: dict[str, float] = {}

    def expected(self, groups: Sequence[Group]) -> Baseline:
        """Return the mean, or [P, 1]: of each prompt's own rewards, the overall mean where a prompt is new."""
        if not self.per_prompt:
            return self.mean
        means = [self.prompt_means.get(group.prompt.id, self.mean) for group in groups]
        return torch.tensor(means, dtype=torch.float64).unsqueeze(-1)

    def update(self, groups: Sequence[Group], rewards: Tensor, *, first: bool) -> None:
        """Move the means of rewards [P, G]: b <- 0.9 b + 0.1 mean; the first value is the mean itself."""
        decay = 0.0 if first else DECAY
        self.mean = decay * self.mean + (1 - decay) * float(rewards.mean())
        if not self.per_prompt:
            return
        means = self.prompt_means
        for group, mean in zip(groups, rewards.mean(-1).tolist(), strict=True):
            name = group.prompt.id
            means[name] = DECAY * means[name] + (1 - DECAY) * mean if name in means else mean

    def state(self) -> dict[str, Any]:
        return {"baseline": self.mean} | ({"prompt_baselines": self.prompt_means} if self.prompt_means else {})

    def write(self, folder: Path) -> None:
        """Write nothing: ``state`` has all of it."""

    def restore(self, checkpoint: Checkpoint) -> None:
        mean = float(checkpoint.state["baseline"])
        prompt_means = checkpoint.state.get("prompt_baselines", {})
        self.prompt_means = {name: float(value) for name, value in prompt_means.items()}
        self.mean = mean


class GroupCredit:
    """Advantages from the rewards of the step, by the preset's advantage function; base of the other two kinds.

    Attributes:
        needs_reference: whether log-probabilities under the KL term's reference are needed.
        trains_every_sample: whether completions of advantage zero are run for the gradient too.
    """

    needs_reference = False
    trains_every_sample = False

    def __init__(self, preset: Preset, baseline: MovingBaseline) -> None:
        self.preset, self.baseline = preset, baseline

    def assign(
        self, rollouts: Rollouts, rewards: Rewards, reference_logprobs: Tensor | None, budget: TokenBudget
    ) -> Credit:
        """Return the credit of all tokens of a step.

        ``reference_logprobs`` [T] are None unless ``needs_reference`` or the KL term asks for them.
        """
        lengths, grouped = rollouts.lengths, rewards.by_group(rollouts.lengths)
        baseline = self.baseline.expected(rollouts.groups)
        if rewards.tokens is not None:
            advantages, tracked = token_advantages(self.preset, grouped, rewards.tokens, lengths, baseline)
            return Credit(advantages, sum_by_sequence(advantages, lengths) / lengths, tracked)
        by_group, metrics = self.compare(grouped, baseline, rollouts, reference_logprobs)
        return Credit(by_group.flatten().repeat_interleave(lengths), by_group.flatten(), grouped, metrics=metrics)

    def compare(
        self, grouped: Tensor, baseline: Baseline, rollouts: Rollouts, reference_logprobs: Tensor | None
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Return the advantages [P, G] of rewards [P, G], and metrics of the comparison."""
        return self.preset.advantages(grouped, baseline), {}


class PairCredit(GroupCredit):
    """Online DPO (arXiv 2402.04792): a prompt's best sample against its worst, in the strength of DPO's gradient."""

    needs_reference = True

    def __init__(self, preset: Preset, baseline: MovingBaseline, beta: float) -> None:
        super().__init__(preset, baseline)
        self.beta = beta

    def compare(
        self, grouped: Tensor, baseline: Baseline, rollouts: Rollouts, reference_logprobs: Tensor | None
    ) -> tuple[Tensor, Mapping[str, float]]:
        assert reference_logprobs is not None
        signs = self.preset.advantages(grouped, baseline)
        # The samples are the policy's own, so pi is what the sampler recorded.
        ratios = sum_by_sequence(rollouts.full_logprobs - reference_logprobs, rollouts.lengths).view(grouped.shape)
        advantages, margins = scale_as_dpo(signs, ratios, self.beta)
        return advantages, pair_metrics(margins)


class CriticCredit(GroupCredit):
    """PPO (arXiv 1707.06347): advantages by GAE from a critic, which is trained beside the policy."""

    trains_every_sample = True

    def __init__(self, preset: Preset, baseline: MovingBaseline, critic: Critic) -> None:
        super().__init__(preset, baseline)
        self.critic = critic

    def assign(
        self, rollouts: Rollouts, rewards: Rewards, reference_logprobs: Tensor | None, budget: TokenBudget
    ) -> Credit:
        completions, lengths = rollouts.completions, rollouts.lengths
        batches = microbatches(completions, range(len(completions)), budget)
        values = evaluate_tokens(self.critic.model.values, completions, lengths, batches)
        advantages, returns = token_credit(
            rewards.whole, rewards.penalties, values, lengths, self.critic.settings, rewards.tokens
        )
        means = sum_by_sequence(advantages, lengths) / lengths
        metrics = {"critic/explained_variance": explained_variance(values, returns)}
        return Credit(advantages, means, rewards.by_group(lengths), values, returns, metrics)


def credit_assigner(
    preset: Preset, settings: Algorithm, baseline: MovingBaseline, critic: Critic | None
) -> GroupCredit:
    """Return the assigner of an algorithm. Raises ValueError where it and the critic do not belong together."""
    if preset.critic != (critic is not None):
        raise ValueError("an algorithm with a critic needs one, and any other algorithm takes none")
    if critic is not None:
        return CriticCredit(preset, baseline, critic)
    if preset.paired:
        return PairCredit(preset, baseline, pair_beta(settings))
    return GroupCredit(preset, baseline)


def token_advantages(
    preset: Preset, whole: Tensor, earned: Tensor, lengths: Tensor, baseline: Baseline
) -> tuple[Tensor, Tensor]:
    """Return per-token advantages [T], and each completion's mean reward-to-go [P, G], which a moving baseline follows.

    Rewards ``whole`` [P, G] count for every token of a completion; those ``earned`` [T] with a token count for it and
    for the tokens before it. Raises BurnishError if the algorithm has no per-token advantages.
    """
    if preset.token_level is None:
        raise BurnishError(
            f"a reward gives credit to single tokens, which this algorithm cannot use: {preset.why_completion_level}"
        )
    rows, mask = pad_by_sequence(earned, lengths)
    shape = (*whole.shape, mask.shape[-1])
    to_go = reward_to_go(rows).view(shape)
    advantages = preset.token_level(whole, to_go, mask.view(shape), baseline)
    return advantages.view(mask.shape)[mask], mean_return(whole, to_go, mask.view(shape))


def split_rewards(scores: Scores) -> tuple[Tensor, Tensor | None]:
    """Return the rewards of whole completions [N], and those of single tokens [T] or None."""
    rewards = scores.token_rewards
    if rewards is None:
        return torch.from_numpy(scores.total), None
    return torch.from_numpy(rewards.per_completion), torch.from_numpy(np.concatenate(rewards.per_token))
