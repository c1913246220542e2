"""One step of learning, read from top to bottom. The loop around it is in ``loop.py``.

The step sees protocols, not implementations: a policy that says how probable tokens are, a sampler, a scorer, and a
preset that is an advantage function, a loss function and a way of adding up. It asks what a preset needs, such as a critic
or pairs, and never which algorithm it is.

P prompts, G samples of each, N = P*G completions, T their tokens; see ``burnish.types``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from burnish.algorithms.advantages import Baseline, paired_strength
from burnish.algorithms.importance import importance_weights
from burnish.algorithms.kl import ESTIMATORS, adapted_coefficient, k1
from burnish.algorithms.ops import log_ratio, sequence_weights, sum_by_sequence
from burnish.algorithms.presets import Preset
from burnish.algorithms.shaping import length_cost, overlong_penalty
from burnish.algorithms.table_gradients import adding_to_grad
from burnish.errors import BurnishError
from burnish.evaluation.guards import text_diversity
from burnish.protocols import CachesForward, HasLaggedPolicy, LogprobModel, Policy, Sampler, Scorer, StatefulScorer
from burnish.recipe.algorithm import KL, pair_beta
from burnish.recipe.schema import Job, Recipe
from burnish.run.interrupts import Interrupts
from burnish.training import baselines
from burnish.training import token_advantages as credit
from burnish.training.batching import TokenBudget, asked_of, collate, microbatches, trained_places, update_places
from burnish.training.critic import Critic, explained_variance, token_credit
from burnish.training.kl_reference import Anchor
from burnish.training.metrics import Clock, Totals, length_metrics, pair_metrics, reward_metrics, sample_rows
from burnish.training.prompt_order import Draw
from burnish.training.rollouts import collect
from burnish.types import Completion, Group, Prompt, Scores

UPDATE_SEED = 2
"""Mixed into the seed that shuffles a step's prompts into minibatches."""


@dataclass(slots=True)
class Learner:
    """Everything that a step needs, and the little that it changes: the policy's weights and what is below ``step``."""

    recipe: Recipe
    policy: Policy
    sampler: Sampler
    scorer: Scorer
    prompts: Sequence[Prompt]
    preset: Preset
    optimizer: torch.optim.Optimizer
    step: int = 0
    baseline: float = 0.0
    prompt_baselines: dict[str, float] = field(default_factory=dict)
    """Of each prompt by its id, where the recipe asks for it."""
    metrics: Scorer | None = None
    """What is measured on held-out completions and not trained on."""
    interrupts: Interrupts = field(default_factory=Interrupts)
    kl_coefficient: float = field(init=False)
    anchor: Anchor | None = None
    """What the KL term pulls towards, where that is not the policy that training started from."""
    critic: Critic | None = None
    """What PPO's advantages are reckoned from; None with every other algorithm."""

    def __post_init__(self) -> None:
        if self.preset.critic != (self.critic is not None):
            raise ValueError("a critic belongs to an algorithm that has one, and to no other")
        self.kl_coefficient = self.recipe.algorithm.kl.coefficient

    def baselines(self, groups: Sequence[Group]) -> Baseline:
        """What the rewards of these groups are compared with, by an algorithm that has a moving baseline."""
        if self.recipe.algorithm.baseline == "prompt":
            return baselines.of_prompts(groups, self.prompt_baselines, self.baseline)
        return self.baseline

    @property
    def kl_reference(self) -> LogprobModel:
        """What the KL term pulls towards."""
        return self.anchor or self.policy.reference


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step leaves behind: a row for metrics.jsonl and one for samples.jsonl a completion."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


def train_step(learner: Learner) -> StepReport:
    """One policy-gradient step on fresh samples.

    Raises:
        BurnishError: a reward failed, or the loss or the gradient is not finite; the weights are as they were. Where that
            comes after the first of several updates, they are those of half a step, and no state to save.
    """
    recipe, policy, preset, critic = learner.recipe, learner.policy, learner.preset, learner.critic
    settings, sampling, group = recipe.algorithm, recipe.sampling.params, recipe.sampling.samples_per_prompt
    step, kl, correction = learner.step + 1, settings.kl, settings.importance
    pulled = kl.coefficient > 0
    # Where the loss is more than a multiple of the advantage, samples without one are trained too.
    every = (pulled and kl.where == "loss") or settings.entropy > 0 or critic is not None
    clock = Clock()

    # 1. Draw P prompts.
    prompts = draw_prompts(learner.prompts, recipe.sampling.prompts_per_step, recipe.seed, step)

    # 2. Sample G completions of each from the current policy, and score them. Where the preset says so, groups whose rewards
    #    are all equal give way to others.
    if recipe.optimizer.reuse_sampling and isinstance(policy, CachesForward):
        policy.start_forward_cache(recipe.optimizer.reuse_memory)  # what sampling computes, the gradient needs again

    def sample(chosen: Sequence[Prompt], seed: Sequence[int]) -> list[Group]:
        with clock.lap("generate"):
            return learner.sampler.sample(
                chosen, samples_per_prompt=group, sampling=sampling, seed=seed, policy_version=learner.step
            )

    def score(completions: Sequence[Completion]) -> Scores:
        with clock.lap("score"):
            return learner.scorer.score(completions, step=step)

    rollouts = collect(sample, score, prompts, learner.prompts, (recipe.seed, step), preset.refills)
    completions, scores = rollouts.completions, rollouts.scores
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    sampler_logprobs = torch.tensor(
        [logprob for completion in completions for logprob in completion.sampler_logprobs], dtype=torch.float64
    )

    # 3. Screen them: flags are written down, nothing is dropped, so groups keep their size.
    flags = [screen(completion) for completion in completions]

    # 4. What is taken from the rewards: for length, and for the distance to the reference.
    longest = sampling.max_new_tokens
    overlong = overlong_penalty(lengths, longest, settings.overlong.share)
    of_wholes, gained = credit.split(scores)
    brevity = settings.length_cost * length_cost(lengths, longest)
    rewards = of_wholes + settings.overlong.weight * overlong + brevity
    penalties = torch.zeros_like(sampler_logprobs)
    reference_logprobs, distance = None, 0.0
    if pulled or preset.paired:
        with clock.lap("score"):
            reference_logprobs = learner.kl_reference.token_logprobs(completions, sampling.temperature).double()
        distance = float(sum_by_sequence(k1(sampler_logprobs, reference_logprobs), lengths).mean())
        if pulled and kl.where == "reward":
            penalties = learner.kl_coefficient * ESTIMATORS[kl.estimator](sampler_logprobs, reference_logprobs)
    grouped = (rewards - sum_by_sequence(penalties, lengths)).view(-1, group)

    # 5. Advantages, [T]: from rewards [P, G], one for all tokens of a completion; from what came with tokens, and was still
    #    to come at each; or from what a critic expected there.
    tokens = recipe.optimizer.tokens_per_microbatch
    budget = TokenBudget.fitting(policy.max_microbatch_tokens) if tokens is None else TokenBudget(tokens, tokens)
    values = returns = None
    pairs: dict[str, float] = {}
    if critic is not None:
        whole = microbatches(completions, range(len(completions)), budget)
        values = asked_of(critic.model.values, completions, lengths, whole)
        advantages, returns = token_credit(rewards, penalties, values, lengths, critic.settings, gained)
        of_texts = sum_by_sequence(advantages, lengths) / lengths
    elif gained is not None:
        expected = learner.baselines(rollouts.groups)
        advantages, grouped = credit.token_advantages(preset, grouped, gained, lengths, expected)
        of_texts = sum_by_sequence(advantages, lengths) / lengths
    else:
        by_group = preset.advantages(grouped, learner.baselines(rollouts.groups))
        if preset.paired:
            assert reference_logprobs is not None
            # On the policy's own samples pi is what the sampler recorded.
            ratios = sum_by_sequence(sampler_logprobs - reference_logprobs, lengths).view(grouped.shape)
            by_group, margins = paired_strength(by_group, ratios, pair_beta(settings))
            pairs = pair_metrics(margins)
        of_texts = by_group.flatten()
        advantages = of_texts.repeat_interleave(lengths)

    # 6. The step's updates, one unless the recipe says otherwise, each as flat token batches: a token knows its advantage
    #    and its share of the update's loss.
    seed = (recipe.seed, UPDATE_SEED, step)
    places = update_places(
        len(rollouts.groups), group, epochs=settings.epochs, minibatches=settings.minibatches, seed=seed
    )
    moving = sum_by_sequence(advantages.abs(), lengths)  # of tokens that pull apart the sum may be 0
    trained = [trained_places(moving, update, every=every) for update in places]
    old_logprobs = None
    if len(places) > 1:
        cut = microbatches(completions, sorted(set().union(*trained)), budget)
        old_logprobs = asked_of(lambda some: policy.logprobs(some, sampling).logprobs, completions, lengths, cut)

    # 7. For each update and each of its microbatches: log-probabilities, loss, backward. The weights count tokens over the
    #    whole update, so the sum does not depend on the split.
    totals = Totals(corrected=correction.form != "none")
    for number, (update, chosen) in enumerate(zip(places, trained, strict=True), 1):
        weights = torch.zeros(len(completions), dtype=torch.float64)
        weights[update] = sequence_weights(lengths[update], preset.aggregation, sampling.max_new_tokens)
        batches = collate(
            completions, lengths, advantages, weights, sampler_logprobs, reference_logprobs, old_logprobs,
            microbatches(completions, chosen, budget), old_values=values, returns=returns,
        )  # fmt: skip
        learner.optimizer.zero_grad(set_to_none=True)
        if critic is not None:
            critic.begin()
        for batch in batches:
            with adding_to_grad():
                stats = policy.logprobs(batch.completions, sampling, entropy_gradient=settings.entropy > 0)
            logprobs = stats.logprobs.double()
            # With one update the samples are the policy's own: pi_old is what pi is now, and no extra pass computes it.
            old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
            counts = torch.tensor([len(completion.token_ids) for completion in batch.completions])
            ratio = log_ratio(logprobs, old, counts, preset.ratio or "token")
            # What the sampler's probabilities differ by from those of pi_old; 1 unless the recipe corrects for it.
            factor = importance_weights(
                old, batch.sampler_logprobs, counts,
                correction=correction.form, level=correction.level, cap=correction.limit,
            )  # fmt: skip
            token_loss = factor * preset.loss(logprobs, ratio, batch.advantages, preset.limits)
            if pulled and kl.where == "loss":
                assert batch.reference_logprobs is not None
                pull = ESTIMATORS[kl.estimator]
                token_loss = token_loss + learner.kl_coefficient * pull(logprobs, batch.reference_logprobs)
            if settings.entropy > 0:
                token_loss = token_loss - settings.entropy * stats.entropy.double()
            loss = (batch.weights * token_loss).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            clipped = preset.clipped(ratio.detach(), batch.advantages, preset.limits)
            totals.add(loss.detach(), logprobs.detach(), old, stats.entropy.detach(), clipped, factor, batch)
            if critic is not None:
                critic.backward(batch)
            # The graph goes before the next one comes: its nodes would pin down the memory that its tensors gave back.
            del stats, logprobs, ratio, token_loss, loss

        # 8. Stop on anything that is not finite, before the weights change; clip; step.
        limit = recipe.optimizer.max_grad_norm
        parameters = list(policy.trainable().values())
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))
        refuse_non_finite(step, totals.loss, grad_norm, update=number)
        totals.updated(grad_norm)
        if critic is not None:
            critic_norm = critic.clipped_norm(limit)
            refuse_non_finite(step, critic.loss, critic_norm, update=number, of="critic's ")
            totals.criticised(critic.loss, critic_norm)
        rate = learning_rate(recipe, step)
        for parameter_group in learner.optimizer.param_groups:
            parameter_group["lr"] = rate
        learner.interrupts.hold()  # until the loop has written this step down: half a step is no state to save
        learner.step = step
        learner.optimizer.step()
        if isinstance(policy, CachesForward):
            policy.stop_forward_cache()
        if critic is not None:
            critic.move(rate)
    learner.optimizer.zero_grad(set_to_none=True)
    kept = baselines.DECAY if step > 1 else 0.0
    learner.baseline = kept * learner.baseline + (1 - kept) * float(grouped.mean())
    if settings.baseline == "prompt":
        baselines.remember(learner.prompt_baselines, rollouts.groups, grouped)
    if isinstance(learner.scorer, StatefulScorer):
        learner.scorer.update_state(scores)
    metrics_of_kl = {"kl/coefficient": learner.kl_coefficient, "kl/completion": distance} if pulled else {}
    learner.kl_coefficient = next_coefficient(kl, learner.kl_coefficient, distance, samples=len(completions))
    if kl.reset_every is not None and step % kl.reset_every == 0:
        learner.anchor = Anchor.of(policy)
    if sampling.lagged_top_p < 1 and step % recipe.sampling.nlpo_every == 0 and isinstance(policy, HasLaggedPolicy):
        policy.update_lagged_policy()

    # 9. One flat dict of metrics.
    metrics = {
        "step": step,
        **reward_metrics(scores),
        **totals.metrics(),
        **metrics_of_kl,
        **pairs,
        **(rollouts.refill_metrics() if preset.refills else {}),
        **(
            {}
            if values is None or returns is None
            else {"critic/explained_variance": explained_variance(values, returns)}
        ),
        "trained": sum(map(len, trained)) / sum(map(len, places)),
        # Steps that the weights had gone on since they sampled: 0 where sampling and training take turns.
        "staleness": sum(step - 1 - completion.policy_version for completion in completions) / len(completions),
        "learning_rate": rate,
        **length_metrics(completions),
        **text_diversity([completion.text for completion in completions]),
        **clock.metrics(tokens=int(lengths.sum())),
    }
    rows = sample_rows(step, completions, scores, of_texts, flags)
    return StepReport(metrics, rows)


def draw_prompts(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of a step (counted from 1), as ``Draw`` draws them."""
    return [prompts[place] for place in Draw(len(prompts), count, seed).step(step)]


def screen(completion: Completion) -> tuple[str, ...]:
    """Flags that go into samples.jsonl beside the completion."""
    flags = {"empty": not completion.text.strip(), "truncated": completion.finish_reason == "length"}
    return tuple(name for name, raised in flags.items() if raised)


def next_coefficient(kl: KL, coefficient: float, distance: float, *, samples: int) -> float:
    """The KL term's coefficient for the next step: the same, or nearer to what keeps the distance at its target.

    Args:
        distance: this step's KL of whole completions, nats.
        samples: N; a horizon of H samples makes the rate N/H, and without one the rate is the paper's 0.1.
    """
    if kl.target is None:
        return coefficient
    rate = 0.1 if kl.horizon is None else samples / kl.horizon
    return adapted_coefficient(coefficient, distance, target=kl.target, rate=rate)


def refuse_non_finite(
    step: int, loss: float, grad_norm: float, *, update: int = 1, of: str = "", rewarded: bool = True
) -> None:
    """Raises BurnishError where a weight would become not-a-number. Samples that were ``rewarded`` may say why."""
    look = ", and look in samples.jsonl for rewards that run away" if rewarded else ""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            where, kept = f"step {step}", "the weights were left as they were"
            if update > 1:
                where, kept = f"step {step}, update {update}", "the weights of this step's earlier updates are not kept"
            raise BurnishError(
                f"{where}: the {of}{name} is {value}; {kept}. Resuming would come to the same: "
                f"start again with a lower optimizer.learning_rate{look}"
            )


def learning_rate(recipe: Job, step: int) -> float:
    """The rate of a step (counted from 1): linear warm-up, then constant or linear to zero after the last step."""
    optimizer = recipe.optimizer
    if step <= optimizer.warmup_steps:
        return optimizer.learning_rate * step / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    left = recipe.steps - optimizer.warmup_steps
    return optimizer.learning_rate * (recipe.steps - step + 1) / left
