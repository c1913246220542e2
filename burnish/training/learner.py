"""A learner: everything a training step needs, and the state that it carries from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from burnish.algorithms.presets import Preset
from burnish.protocols import HasLaggedPolicy, ParameterOptimizer, Policy, Sampler, Scorer, StatefulScorer
from burnish.recipe.schema import Recipe
from burnish.run.checkpoint import PolicyState, Stateful
from burnish.run.folder import Checkpoint
from burnish.run.interrupts import Interrupts
from burnish.training.advantages import GroupCredit, MovingBaseline, credit_assigner
from burnish.training.batching import TokenBudget
from burnish.training.critic import Critic
from burnish.training.kl_reference import KLTerm
from burnish.training.optimizer import clip_gradient
from burnish.training.policy_loss import MicrobatchLoss, PolicyLoss
from burnish.training.rollouts import Rollouts, Screen, flag_completion
from burnish.types import Completion, Microbatch, Prompt

AddGradients = Callable[[Sequence[Microbatch]], Iterable[MicrobatchLoss]]
"""Adds the gradients of an update's microbatches to the policy's parameters; gives their losses, in order."""


class SplitState(PolicyState, Protocol):
    """A policy and its optimizer that several processes have in parts."""

    def clip_gradient(self, limit: float | None) -> float:
        """Clip the whole gradient to a norm (None: no limit) and return its norm before."""


@dataclass(slots=True)
class Learner:
    """A policy, what it is trained on, and how.

    The algorithm is chosen here, before the first step: ``credit`` turns rewards into advantages, ``kl`` holds the
    policy near a reference, and ``policy_loss`` computes per-token losses. ``metrics`` scores held-out completions by
    what is not trained on, ``held_out_sets`` are further prompts to measure, by name, ``screen`` flags completions before
    they are scored, and ``step`` is the number of steps taken.

    Raises:
        ValueError: a critic is missing for an algorithm that uses one, or given to another.
    """

    recipe: Recipe
    policy: Policy
    sampler: Sampler
    scorer: Scorer
    prompts: Sequence[Prompt]
    preset: Preset
    optimizer: ParameterOptimizer
    critic: Critic | None = None
    metrics: Scorer | None = None
    held_out_sets: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)
    screen: Screen = flag_completion
    add_gradients: AddGradients | None = None
    """Of a backend, where several processes share the work; None computes every gradient in this one."""
    split: SplitState | None = None
    """Of a backend, where several processes have parts of the policy and the optimizer."""
    step: int = 0
    interrupts: Interrupts = field(default_factory=Interrupts)
    credit: GroupCredit = field(init=False)
    kl: KLTerm = field(init=False)
    policy_loss: PolicyLoss = field(init=False)

    def __post_init__(self) -> None:
        settings = self.recipe.algorithm
        baseline = MovingBaseline(per_prompt=settings.baseline == "prompt")
        self.kl = KLTerm(settings.kl, self.policy)
        self.policy_loss = PolicyLoss(self.preset, settings, self.kl)
        self.credit = credit_assigner(self.preset, settings, baseline, self.critic)

    @property
    def critics(self) -> tuple[Critic, ...]:
        """PPO's value model; empty for every other algorithm."""
        return () if self.critic is None else (self.critic,)

    @property
    def budget(self) -> TokenBudget:
        """Tokens in one forward and backward pass."""
        return TokenBudget.for_policy(self.recipe.optimizer.tokens_per_microbatch, self.policy)

    @property
    def trains_every_sample(self) -> bool:
        """Whether samples of advantage zero have a gradient too."""
        return self.credit.trains_every_sample or self.policy_loss.trains_every_sample

    def reference_logprobs(self, completions: Sequence[Completion]) -> Tensor | None:
        """Return log-probabilities [T], float64, under the KL term's reference; None where nothing needs them."""
        if not (self.kl.active or self.credit.needs_reference):
            return None
        return self.kl.reference.token_logprobs(completions, self.recipe.sampling.temperature).double()

    def clip_gradient(self, limit: float | None) -> float:
        """Clip the policy's gradient to a norm (None: no limit) and return its norm before."""
        if self.split is not None:
            return self.split.clip_gradient(limit)
        return clip_gradient(self.policy.trainable().values(), limit)

    def finish_step(self, rollouts: Rollouts, tracked: Tensor, distance: float) -> None:
        """Move all that follows the policy: baselines, KL coefficient and reference, reward statistics.

        ``tracked`` [P, G] are the baseline's rewards, ``distance`` the completions' mean KL to the reference, nats.
        """
        policy, sampling = self.policy, self.recipe.sampling
        self.credit.baseline.update(rollouts.groups, tracked, first=self.step == 1)
        if isinstance(self.scorer, StatefulScorer):
            self.scorer.update_state(rollouts.scores)
        self.kl.finish_step(self.step, distance, samples=len(rollouts.completions))
        due = sampling.nlpo_top_p < 1 and self.step % sampling.nlpo_every == 0
        if due and isinstance(policy, HasLaggedPolicy):
            policy.update_lagged_policy()

    @property
    def parts(self) -> tuple[Stateful, ...]:
        """Everything besides policy and optimizer that a checkpoint holds."""
        samples = (self.sampler,) if isinstance(self.sampler, Stateful) else ()
        return (self.credit.baseline, self.kl, *self.critics, ScorerState(self.scorer), *samples)


@dataclass(frozen=True, slots=True)
class ScorerState:
    """The part of a checkpoint that belongs to a scorer that compares rewards with those of earlier steps."""

    scorer: Scorer

    def state(self) -> dict[str, Any]:
        if isinstance(self.scorer, StatefulScorer) and self.scorer.state:
            return {"scorer": self.scorer.state}
        return {}

    def write(self, folder: Path) -> None:
        """Write nothing: ``state`` has all of it."""

    def restore(self, checkpoint: Checkpoint) -> None:
        if isinstance(self.scorer, StatefulScorer) and self.scorer.state:
            self.scorer.state = checkpoint.state["scorer"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """The rows that one step writes: one for metrics.jsonl, and one per completion for samples.jsonl."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]
