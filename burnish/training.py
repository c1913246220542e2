"""One step of learning, read from top to bottom. The loop around it is in ``loop.py``.

The step sees protocols, not implementations: a policy that says how probable tokens are, a sampler, a scorer, and a
preset that is an advantage function, a loss function and a way of adding up. No algorithm branches in here.

P prompts, G samples of each, N = P*G completions, T their tokens; see ``burnish.types``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.algorithms.kl import ESTIMATORS, k1, k3
from burnish.algorithms.ops import log_ratio, sequence_weights, sum_by_sequence
from burnish.algorithms.presets import Preset
from burnish.batching import TokenBudget, microbatches
from burnish.errors import BurnishError
from burnish.interrupts import Interrupts
from burnish.protocols import Policy, Recording, Sampler, Scorer
from burnish.recipe import Job, Recipe
from burnish.rewards.guards import text_diversity
from burnish.types import Batch, Completion, Prompt, Scores

BASELINE_DECAY = 0.9
"""How much of the moving baseline each step keeps."""


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
    interrupts: Interrupts = field(default_factory=Interrupts)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step leaves behind: a row for metrics.jsonl and one for samples.jsonl a completion."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


def train_step(learner: Learner) -> StepReport:
    """One policy-gradient step on fresh samples.

    Raises:
        BurnishError: a reward failed, or the loss or the gradient is not finite; the weights are as they were.
    """
    recipe, policy, preset = learner.recipe, learner.policy, learner.preset
    step, sampling, kl = learner.step + 1, recipe.sampling.params, recipe.algorithm.kl
    clock = Clock()

    # 1. Draw P prompts.
    prompts = draw_prompts(learner.prompts, recipe.sampling.prompts_per_step, recipe.seed, step)

    # 2. Sample G completions of each from the current policy; what it computes for that, the gradient needs again.
    if isinstance(policy, Recording):
        policy.record()
    groups = learner.sampler.sample(
        prompts,
        samples_per_prompt=recipe.sampling.samples_per_prompt,
        sampling=sampling,
        seed=(recipe.seed, step),
        policy_version=learner.step,
    )
    completions = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    sampler_logprobs = torch.tensor(
        [logprob for completion in completions for logprob in completion.sampler_logprobs], dtype=torch.float64
    )
    clock.lap("generate")

    # 3. Screen them: flags are written down, nothing is dropped, so groups keep their size.
    flags = [screen(completion) for completion in completions]

    # 4. Score.
    scores = learner.scorer.score(completions, step=step)
    rewards = torch.from_numpy(scores.total)
    reference_logprobs = None
    if kl.coefficient > 0:
        reference_logprobs = policy.reference.token_logprobs(completions, sampling.temperature).double()
        if kl.where == "reward":
            penalty = ESTIMATORS[kl.estimator](sampler_logprobs, reference_logprobs)
            rewards = rewards - kl.coefficient * sum_by_sequence(penalty, lengths)
    clock.lap("score")

    # 5. Advantages from rewards, [P, G] -> [N].
    grouped = rewards.view(len(groups), recipe.sampling.samples_per_prompt)
    advantages = preset.advantages(grouped, learner.baseline).flatten()

    # 6. Flat token batches: each token knows its advantage and its share of the step's loss.
    weights = sequence_weights(lengths, recipe.algorithm.aggregation or preset.aggregation, sampling.max_new_tokens)
    trained = trained_places(advantages, every=kl.coefficient > 0 and kl.where == "loss")
    tokens = recipe.optimizer.tokens_per_microbatch
    budget = TokenBudget.fitting(policy.fitting_tokens) if tokens is None else TokenBudget(tokens, tokens)
    batches = collate(
        completions, lengths, advantages, weights, sampler_logprobs, reference_logprobs,
        microbatches(completions, trained, budget),
    )  # fmt: skip

    # 7. For each microbatch: log-probabilities, loss, backward. The weights count tokens over the whole step, so the sum
    #    does not depend on the split.
    learner.optimizer.zero_grad(set_to_none=True)
    totals = Totals()
    for batch in batches:
        stats = policy.logprobs(batch.completions, sampling)
        logprobs = stats.logprobs.double()
        # The samples are the policy's own: pi_old is what pi is now, so no extra pass computes it.
        counts = torch.tensor([len(completion.token_ids) for completion in batch.completions])
        ratio = log_ratio(logprobs, logprobs.detach(), counts, preset.ratio or "token")
        token_loss = preset.loss(logprobs, ratio, batch.advantages, preset.limits)
        if kl.coefficient > 0 and kl.where == "loss":
            assert batch.reference_logprobs is not None
            token_loss = token_loss + kl.coefficient * ESTIMATORS[kl.estimator](logprobs, batch.reference_logprobs)
        loss = (batch.weights * token_loss).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        clipped = preset.clipped(ratio.detach(), batch.advantages, preset.limits)
        totals.add(loss.detach(), logprobs.detach(), stats.entropy, clipped, batch)

    # 8. Stop on anything that is not finite, before the weights change; clip; step.
    parameters = list(policy.trainable().values())
    limit = recipe.optimizer.max_grad_norm
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))
    refuse_non_finite(step, totals.loss, grad_norm)
    rate = learning_rate(recipe, step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.interrupts.hold()  # until the loop has written this step down: half a step is no state to save
    learner.optimizer.step()
    if isinstance(policy, Recording):
        policy.forget()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.step = step
    kept = BASELINE_DECAY if step > 1 else 0.0
    learner.baseline = kept * learner.baseline + (1 - kept) * float(rewards.mean())
    clock.lap("update")

    # 9. One flat dict of metrics.
    metrics = {
        "step": step,
        **reward_metrics(scores),
        **totals.metrics(),
        "trained": len(trained) / len(completions),
        "grad_norm": grad_norm,
        "learning_rate": rate,
        **length_metrics(completions),
        **text_diversity([completion.text for completion in completions]),
        **clock.metrics(tokens=int(lengths.sum())),
    }
    rows = sample_rows(step, completions, scores, advantages, flags)
    return StepReport(metrics, rows)


def draw_prompts(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of a step (counted from 1): each epoch is a new order of all prompts, and steps read on where the last
    one ended. A function of its arguments alone, so a resumed run sees the same prompts."""
    drawn = []
    for place in range((step - 1) * count, step * count):
        epoch, position = divmod(place, len(prompts))
        order = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 1, epoch]))).permutation(
            len(prompts)
        )
        drawn.append(prompts[order[position]])
    return drawn


def screen(completion: Completion) -> tuple[str, ...]:
    """Flags that go into samples.jsonl beside the completion."""
    flags = {"empty": not completion.text.strip(), "truncated": completion.finish_reason == "length"}
    return tuple(name for name, raised in flags.items() if raised)


def trained_places(advantages: Tensor, *, every: bool) -> list[int]:
    """Which of N completions are run for the gradient: all, or those whose advantage is not zero, where a loss that is a
    multiple of the advantage is all there is. At least one, so that the step has its metrics, and a gradient of zeros."""
    places = range(len(advantages)) if every else (advantages != 0).nonzero().flatten().tolist()
    return list(places) or [0]


def collate(
    completions: Sequence[Completion],
    lengths: Tensor,
    advantages: Tensor,
    weights: Tensor,
    sampler_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    cut: Sequence[Sequence[int]],
) -> list[Batch]:
    """One batch for each microbatch of ``cut``, which lists places among the completions; per-sequence numbers [N] become
    per-token ones [T]."""
    by_sampler = torch.split(sampler_logprobs, lengths.tolist())
    by_reference = None if reference_logprobs is None else torch.split(reference_logprobs, lengths.tolist())
    batches = []
    for places in cut:
        chosen = torch.tensor(places)
        repeats = lengths[chosen]
        batches.append(
            Batch(
                completions=[completions[place] for place in places],
                advantages=advantages[chosen].repeat_interleave(repeats),
                weights=weights[chosen].repeat_interleave(repeats),
                sampler_logprobs=torch.cat([by_sampler[place] for place in places]),
                reference_logprobs=None if by_reference is None else torch.cat([by_reference[p] for p in places]),
            )
        )
    return batches


class Totals:
    """Sums over the microbatches of a step, kept in float64."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.tokens = 0
        self._sums: dict[str, float] = {}

    def add(
        self, loss: Tensor, logprobs: Tensor, entropy: Tensor, clipped: tuple[Tensor, Tensor], batch: Batch
    ) -> None:
        self.loss += float(loss)
        self.tokens += len(logprobs)
        sums = {
            "entropy": entropy.double().sum(),
            # k3 of the sampler against the trainer on the same weights: zero but for rounding.
            "mismatch_kl": k3(batch.sampler_logprobs, logprobs).sum(),
            "clip_fraction": (clipped[0] | clipped[1]).sum(),
            "clip_fraction/low": clipped[0].sum(),
            "clip_fraction/high": clipped[1].sum(),
        }
        if batch.reference_logprobs is not None:
            sums["kl"] = k3(logprobs, batch.reference_logprobs).sum()
            sums["kl/k1"] = k1(logprobs, batch.reference_logprobs).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def metrics(self) -> dict[str, float]:
        """Means over tokens, and the loss."""
        return {"loss": self.loss, **{name: value / self.tokens for name, value in sorted(self._sums.items())}}


def refuse_non_finite(step: int, loss: float, grad_norm: float) -> None:
    """Raises BurnishError where a weight would become not-a-number."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            raise BurnishError(
                f"step {step}: the {name} is {value}; the weights were left as they were. Resuming would come to the same: "
                "start again with a lower optimizer.learning_rate, and look in samples.jsonl for rewards that run away"
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


def reward_metrics(scores: Scores) -> dict[str, float]:
    """reward/mean, reward/std and the mean of each part; the mean of a normalised total would be 0 at every step."""
    parts = {f"reward/{name}": float(values.mean()) for name, values in scores.parts.items()}
    plain = scores.total if scores.plain is None else scores.plain
    return {"reward/mean": float(plain.mean()), "reward/std": float(plain.std()), **parts}


def length_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Lengths in tokens, and the share that was cut at the limit."""
    lengths = np.array([len(completion.token_ids) for completion in completions])
    cut = np.array([completion.finish_reason == "length" for completion in completions])
    return {"length/mean": float(lengths.mean()), "length/std": float(lengths.std()), "truncated": float(cut.mean())}


def sample_rows(
    step: int, completions: Sequence[Completion], scores: Scores, advantages: Tensor, flags: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """One row a completion for samples.jsonl."""
    return [
        {
            "step": step,
            "prompt_id": completion.prompt.id,
            "prompt": completion.prompt.text,
            "completion": completion.text,
            "reward": float(scores.total[place]),
            "parts": {name: float(values[place]) for name, values in scores.parts.items()},
            "advantage": float(advantages[place]),
            "flags": list(flags[place]),
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.token_ids),
        }
        for place, completion in enumerate(completions)
    ]


class Clock:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[f"time/{name}"] = now - self._last
        self._last = now

    def metrics(self, tokens: int) -> dict[str, float]:
        total = time.perf_counter() - self._begin
        return {"tokens": tokens, "tokens_per_second": tokens / total, **self._laps, "time/step": total}
