"""One training step, to be read from top to bottom.

The step sees protocols, not implementations: a policy, a sampler, a scorer. What distinguishes one algorithm from
another is in objects that are chosen before the first step (``Learner.credit``, ``critics``, ``kl`` and
``policy_loss``), so no phase asks which algorithm it belongs to. The loop around the step is in ``trainer.py``.

P prompts, G samples of each, N = P*G completions, T tokens of all completions together; see ``burnish.types``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from burnish.algorithms.kl import k1
from burnish.algorithms.ops import sequence_weights, sum_by_sequence
from burnish.algorithms.reward_shaping import length_cost, overlong_penalty
from burnish.algorithms.table_gradients import adding_to_grad
from burnish.errors import BurnishError
from burnish.evaluation.finite_samples import refuse_broken_samples
from burnish.evaluation.guards import text_diversity
from burnish.protocols import CachesForward, HasLogprobs, HasMetrics
from burnish.rewards.part import named_row
from burnish.system.clock import Clock
from burnish.system.machine import LEAST_SHARE
from burnish.training.advantages import Credit, Rewards, split_rewards
from burnish.training.batching import (
    StepTensors,
    evaluate_tokens,
    microbatches,
    split_by_tokens,
    trained_indices,
    update_indices,
)
from burnish.training.learner import Learner, StepReport
from burnish.training.metrics import Totals, length_metrics, reward_metrics, sample_rows
from burnish.training.optimizer import learning_rate, refuse_non_finite, set_learning_rate
from burnish.training.policy_loss import MicrobatchLoss, PolicyLoss
from burnish.training.prompt_order import PromptOrder
from burnish.training.rollouts import Flags, Rollouts, collect
from burnish.types import Completion, Group, Microbatch, Prompt, SamplingParams, Scores

LARGEST_ADVANTAGE = 1e30
"""Largest size of an advantage: sums of a few more orders of magnitude do not leave the range of float32."""
UPDATE_SEED = 2
"""Mixed into the seed that shuffles a step's prompts into minibatches."""


def train_step(learner: Learner) -> StepReport:
    """Make one policy-gradient step on fresh samples.

    Raises:
        BurnishError: a reward failed, or the loss or the gradient is not finite. The weights are unchanged, unless an
            earlier update of the same step has moved them; such a state is never saved.
    """
    clock, step = Clock(), learner.step + 1
    prompts = draw_prompts(learner.prompts, learner.recipe.sampling.prompts_per_step, learner.recipe.seed, step)
    rollouts = roll_out(learner, prompts, step, clock)
    with clock.lap("score"):
        reference_logprobs = learner.reference_logprobs(rollouts.completions)
    # 4. Assign credit: an advantage for each token, by the algorithm's own assigner.
    rewards = shape_rewards(learner, rollouts, reference_logprobs)
    credit = learner.credit.assign(rollouts, rewards, reference_logprobs, learner.budget)
    refuse_unusable(step, rollouts, credit)
    updates = plan_updates(learner, rollouts, credit, reference_logprobs, step)
    every = range(len(rollouts.completions))
    recorded = policy_logprobs(learner, rollouts, every) if learner.recipe.record_tokens else None
    totals = Totals(corrected=learner.policy_loss.corrects_sampler)
    for update in updates:
        apply_update(learner, update, totals, step)
    return report(learner, rollouts, rewards, credit, updates, totals, reference_logprobs, recorded, clock)


def draw_prompts(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """1. Draw the P prompts of a step (counted from 1): every prompt once per epoch, a function of seed and step."""
    return [prompts[index] for index in PromptOrder(len(prompts), count, seed).step(step)]


def roll_out(learner: Learner, prompts: Sequence[Prompt], step: int, clock: Clock) -> Rollouts:
    """2. and 3. Sample G completions of each prompt from the current policy, screen them, score them.

    Screening comes before scoring, so that flags can gate a reward. Flags are recorded and no completion is dropped, so
    groups keep their size.
    """
    recipe, policy = learner.recipe, learner.policy
    if recipe.optimizer.reuse_sampling and isinstance(policy, CachesForward):
        # What sampling computes, the gradient needs again.
        policy.start_forward_cache(recipe.optimizer.reuse_memory or LEAST_SHARE)

    def sample(chosen: Sequence[Prompt], seed: Sequence[int]) -> list[Group]:
        with clock.lap("generate"):
            groups = learner.sampler.sample(
                chosen, samples_per_prompt=recipe.sampling.samples_per_prompt, sampling=recipe.sampling.params,
                seed=seed, policy_version=learner.step,
            )  # fmt: skip
        refuse_broken_samples((one for group in groups for one in group.completions), f"step {step}")
        return groups

    def score(completions: Sequence[Completion], flags: Sequence[Flags]) -> Scores:
        with clock.lap("score"):
            return learner.scorer.score(completions, step=step, flags=flags)

    return collect(sample, learner.screen, score, prompts, learner.prompts, (recipe.seed, step), learner.preset.refills)


def shape_rewards(learner: Learner, rollouts: Rollouts, reference_logprobs: Tensor | None) -> Rewards:
    """4. For credit: subtract from the rewards what length and distance from the reference cost."""
    settings, sampling = learner.recipe.algorithm, learner.recipe.sampling
    lengths, longest = rollouts.lengths, sampling.max_new_tokens
    whole, tokens = split_rewards(rollouts.scores)
    length = settings.overlong.weight * overlong_penalty(lengths, longest, settings.overlong.share)
    length = length + settings.length_cost * length_cost(lengths, longest)
    if learner.preset.refills:
        # Groups that stay flat after refilling teach nothing, and their lengths alone shall not be trained on.
        length.view(len(rollouts.groups), -1)[rollouts.flat] = 0.0
    whole = whole + length
    penalties = learner.kl.reward_penalties(rollouts.full_logprobs, reference_logprobs)
    return Rewards(whole, tokens, penalties, sampling.samples_per_prompt)


def refuse_unusable(step: int, rollouts: Rollouts, credit: Credit) -> None:
    """Raise BurnishError if an advantage or a return [T] is too large to train on, or not a number; name its row."""
    for name, values in (("advantage", credit.advantages), ("return", credit.returns)):
        if values is None or not len(values):
            continue
        usable = values.abs() <= LARGEST_ADVANTAGE  # not-a-number is not
        if not bool(usable.all()):
            index = int((~usable).nonzero()[0])
            row = int(torch.searchsorted(rollouts.lengths.cumsum(0), index, right=True))
            raise BurnishError(
                f"step {step}: the {name} of {named_row(rollouts.completions[row])} is {float(values[index]):.3g}, whose "
                f"reward is {float(rollouts.scores.total[row]):.3g}; the weights are unchanged. Limit the reward with "
                "clip, or lower its weight and the penalties"
            )


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step: its completions, cut into microbatches.

    Attributes:
        number: counted from 1 within the step.
        size, trained: number of completions of the update, and of those of them that have a gradient.
        weights: [N], per token of each completion; they count the whole update's tokens, so a cut changes nothing.
        cut: the indices of each microbatch's completions.
    """

    number: int
    size: int
    trained: int
    weights: Tensor
    cut: Sequence[Sequence[int]]
    tensors: StepTensors


def plan_updates(
    learner: Learner, rollouts: Rollouts, credit: Credit, reference_logprobs: Tensor | None, step: int
) -> list[Update]:
    """5. Cut the step into updates, one unless the recipe asks for more, and each update into microbatches."""
    settings, sampling = learner.recipe.algorithm, learner.recipe.sampling
    completions, lengths, budget = rollouts.completions, rollouts.lengths, learner.budget
    masked = rollouts.truncated if settings.mask_truncated else torch.zeros(len(completions), dtype=torch.bool)
    planned = update_indices(
        len(rollouts.groups), sampling.samples_per_prompt, epochs=settings.epochs, minibatches=settings.minibatches,
        seed=(learner.recipe.seed, UPDATE_SEED, step),
    )  # fmt: skip
    # Per-token advantages may cancel in their sum, so their sizes decide whether a completion has a gradient.
    sizes = sum_by_sequence(credit.advantages.abs(), lengths)
    has_gradient = ~masked if learner.trains_every_sample else ~masked & (sizes != 0)
    trained = [trained_indices(has_gradient, indices) for indices in planned]
    old_logprobs = None
    if len(planned) > 1:
        old_logprobs = policy_logprobs(learner, rollouts, sorted(set().union(*trained)))
    tensors = StepTensors(
        completions, lengths, credit.advantages, rollouts.sampler_logprobs, reference_logprobs, old_logprobs,
        credit.values, credit.returns,
    )  # fmt: skip
    updates = []
    for number, (indices, chosen) in enumerate(zip(planned, trained, strict=True), 1):
        weights = torch.zeros(len(completions), dtype=torch.float64)
        counted = lengths[indices].masked_fill(masked[indices], 0)
        token_weights = sequence_weights(counted, learner.preset.aggregation, sampling.max_new_tokens)
        weights[indices] = token_weights.masked_fill(masked[indices], 0.0)
        shares = split_by_tokens(completions, chosen, learner.recipe.backend.learners)
        cut = [batch for share in shares for batch in microbatches(completions, share, budget)]
        updates.append(Update(number, len(indices), int(has_gradient[indices].sum()), weights, cut, tensors))
    return updates


def policy_logprobs(learner: Learner, rollouts: Rollouts, indices: Sequence[int]) -> Tensor:
    """Return the policy's log-probabilities [T] of these completions, without gradient; not-a-number for others."""
    completions, sampling = rollouts.completions, learner.recipe.sampling.params
    return evaluate_tokens(
        lambda some: learner.policy.logprobs(some, sampling).logprobs, completions, rollouts.lengths,
        microbatches(completions, indices, learner.budget),
    )  # fmt: skip


def apply_update(learner: Learner, update: Update, totals: Totals, step: int) -> None:
    """6. Add up the gradient of all microbatches, stop on anything that is not finite, clip, and step the optimizer."""
    recipe, policy = learner.recipe, learner.policy
    learner.optimizer.zero_grad(set_to_none=True)
    for critic in learner.critics:
        critic.begin_update()
    batches = [update.tensors.select(indices, update.weights) for indices in update.cut]
    add = learner.add_gradients or partial(add_gradients, policy, learner.policy_loss, recipe.sampling.params)
    for loss, batch in zip(add(batches), batches, strict=True):
        totals.add(loss, batch)
        for critic in learner.critics:
            critic.backward(batch)
    limit = recipe.optimizer.max_grad_norm
    grad_norm = learner.clip_gradient(limit)
    try:
        refuse_non_finite(step, totals.loss, grad_norm, update=update.number)
    except BurnishError as error:
        raise BurnishError(f"{error} ({suspect(learner, update)})") from error
    totals.end_update(grad_norm)
    for critic in learner.critics:
        critic.check_gradient(step, update.number, limit)
    rate = learning_rate(recipe, step)
    set_learning_rate(learner.optimizer, rate)
    learner.interrupts.hold()  # until the trainer has written this step's rows: half a step is not a state to save
    learner.step = step
    learner.optimizer.step()
    if isinstance(policy, CachesForward):
        policy.stop_forward_cache()
    for critic in learner.critics:
        critic.apply_update(rate)


def suspect(learner: Learner, update: Update) -> str:
    """Name the row of an update whose log-probabilities are not finite, or else the one of the largest advantage."""
    completions, lengths = update.tensors.completions, update.tensors.lengths.tolist()
    indices = sorted(index for some in update.cut for index in some)
    values = evaluate_tokens(
        lambda some: learner.policy.logprobs(some, learner.recipe.sampling.params).logprobs, completions,
        update.tensors.lengths, update.cut,
    )  # fmt: skip
    logprobs = torch.split(values, lengths)
    for index in indices:
        if not bool(logprobs[index].isfinite().all()):
            return f"the first log-probability that is not finite is on {named_row(completions[index])}"
    sizes = sum_by_sequence(update.tensors.advantages.abs(), update.tensors.lengths).tolist()
    return f"the largest advantage is on {named_row(completions[max(indices, key=sizes.__getitem__)])}"


def add_gradients(
    policy: HasLogprobs, policy_loss: PolicyLoss, sampling: SamplingParams, batches: Iterable[Microbatch]
) -> Iterator[MicrobatchLoss]:
    """Add the gradient of each microbatch, and yield its loss. Its graph is freed before the next one is built."""
    for batch in batches:
        with adding_to_grad():
            stats = policy.logprobs(batch.completions, sampling, entropy_gradient=policy_loss.needs_entropy_gradient)
        loss = policy_loss(stats, batch)
        del stats
        loss.loss.backward()  # type: ignore[no-untyped-call]
        yield loss.detached()


def report(
    learner: Learner,
    rollouts: Rollouts,
    rewards: Rewards,
    credit: Credit,
    updates: Sequence[Update],
    totals: Totals,
    reference_logprobs: Tensor | None,
    recorded: Tensor | None,
    clock: Clock,
) -> StepReport:
    """7. Move what follows the policy from step to step, and report: one flat dict, and one row per completion."""
    learner.optimizer.zero_grad(set_to_none=True)
    completions, step = rollouts.completions, learner.step
    distance = completion_kl(rollouts, reference_logprobs)
    kl_metrics = learner.kl.metrics(distance)
    learner.finish_step(rollouts, credit.tracked, distance)
    metrics: dict[str, Any] = {
        "step": step,
        **reward_metrics(rollouts.scores),
        **totals.metrics(),
        **{name: value for critic in learner.critics for name, value in critic.pop_metrics().items()},
        **kl_metrics,
        **credit.metrics,
        **rollouts.group_metrics(),
        "trained": sum(update.trained for update in updates) / sum(update.size for update in updates),
        # Steps that the weights are ahead of those that sampled: 0 where sampling and training take turns.
        "staleness": sum(step - 1 - completion.policy_version for completion in completions) / len(completions),
        "learning_rate": learning_rate(learner.recipe, step),
        **length_metrics(completions),
        **text_diversity([completion.text for completion in completions]),
        **clock.metrics(tokens=int(rollouts.lengths.sum())),
        **backend_metrics(learner),
    }
    return StepReport(
        metrics, sample_rows(step, rollouts, rewards.total(rollouts.lengths), credit.completion_advantages, recorded)
    )


def backend_metrics(learner: Learner) -> dict[str, float]:
    """Return what sampler and gradients, where they are of a backend, report of the step."""
    parts: tuple[object, ...] = (learner.sampler, learner.add_gradients)
    return {name: value for part in parts if isinstance(part, HasMetrics) for name, value in part.pop_metrics().items()}


def completion_kl(rollouts: Rollouts, reference_logprobs: Tensor | None) -> float:
    """Return the mean KL of whole completions to the reference, nats, by the estimator k1; 0 without a reference."""
    if reference_logprobs is None:
        return 0.0
    return float(sum_by_sequence(k1(rollouts.full_logprobs, reference_logprobs), rollouts.lengths).mean())
