"""Step metrics: one flat dict per step, one row per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from burnish.algorithms.kl import k1, k3
from burnish.algorithms.ops import MAX_LOG_RATIO
from burnish.rewards.part import finite_or_none
from burnish.training.policy_loss import MicrobatchLoss
from burnish.training.rollouts import Rollouts
from burnish.types import Completion, Microbatch, Scores


class Totals:
    """Sums over a step's updates and microbatches, in float64; ``corrected`` if the loss corrects for the sampler."""

    def __init__(self, *, corrected: bool = False) -> None:
        self._corrected = corrected
        self.loss = 0.0
        """Of the current update."""
        self._updates: list[tuple[float, float]] = []
        self._tokens = 0
        self._sums: dict[str, float] = {}
        self._weights, self._squares = 0.0, 0.0

    def add(self, loss: MicrobatchLoss, batch: Microbatch) -> None:
        logprobs, old, clipped, importance = loss.logprobs, loss.old_logprobs, loss.clipped, loss.importance
        self.loss += float(loss.loss.detach())
        self._tokens += len(logprobs)
        sums = {
            "entropy": loss.entropy.double().sum(),
            # k3 of the sampler against the trainer on the same weights: zero except for rounding.
            "mismatch_kl": k3(batch.sampler_logprobs, old).sum(),
            "clip_fraction": (clipped[0] | clipped[1]).sum(),
            "clip_fraction/low": clipped[0].sum(),
            "clip_fraction/high": clipped[1].sum(),
        }
        if self._corrected:
            sums["importance/mean"] = importance.sum()
            sums["importance/dropped"] = (importance == 0).sum()
        if batch.old_logprobs is not None:
            # How far the updates have moved the policy: KL(old || new), sampled from old.
            sums["update_kl"] = k3(old, logprobs).sum()
        if batch.reference_logprobs is not None:
            sums["kl"] = k3(loss.full_logprobs, batch.reference_logprobs).sum()
            sums["kl/k1"] = k1(loss.full_logprobs, batch.reference_logprobs).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        weights = (logprobs - batch.sampler_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        self._weights += float(weights.sum())
        self._squares += float(weights.square().sum())

    def end_update(self, grad_norm: float) -> None:
        """Record an update's loss and gradient norm."""
        self._updates.append((self.loss, grad_norm))
        self.loss = 0.0

    def metrics(self) -> dict[str, float]:
        """Return means over tokens, means over updates of loss and gradient norm, and the effective sample size.

        The last is the share of tokens that count as samples of the current policy (Kong 1992).
        """
        losses, norms = zip(*self._updates, strict=True)
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(norms) / len(norms),
            **{name: value / self._tokens for name, value in sorted(self._sums.items())},
            "effective_sample_size": self._weights**2 / (self._tokens * self._squares),
        }


def reward_metrics(scores: Scores) -> dict[str, float]:
    """Return reward metrics of a step.

    ``reward/mean`` and ``reward/std`` are of the total without normalisation, whose mean would be 0 at every step;
    ``reward/<part>`` is a part's mean, ``gate/<part>`` the share of completions that reached its gate,
    ``weight/<part>`` a weight that follows a schedule, ``scoring/<part>/<name>`` what the part's function reported.
    A mean is over the completions that the part applies to; a part that applies to none has no mean.
    """
    applied = {name: values[~np.isnan(values)] for name, values in scores.parts.items()}
    parts = {f"reward/{name}": float(values.mean()) for name, values in applied.items() if values.size}
    plain = scores.total if scores.unnormalised is None else scores.unnormalised
    gates = {f"gate/{name}": float(reached.mean()) for name, reached in scores.passed.items()}
    weights = {f"weight/{name}": scores.weights[name] for name in scores.scheduled}
    # The mean of equal numbers can be off by a rounding error, and their deviation above zero.
    deviation = float(plain.std()) if plain.max() > plain.min() else 0.0
    logged = {f"scoring/{name}": float(np.mean(values)) for name, values in scores.logged.items()}
    logged |= {f"scoring/{name}": value for name, value in scores.counts.items()}
    means = {"reward/mean": float(plain.mean()), "reward/std": deviation}
    return {**means, **parts, **gates, **weights, **logged}


def pair_metrics(margins: Tensor) -> dict[str, float]:
    """Return the share of prompts with a pair, and the pairs' mean DPO loss and margin before the step.

    ``margins`` [P] are not-a-number for prompts without a pair.
    """
    known = margins[~margins.isnan()]
    metrics = {"preference/pairs": len(known) / len(margins)}
    if len(known):
        loss = -nn.functional.logsigmoid(known).mean()
        metrics |= {"preference/loss": float(loss), "preference/margin": float(known.mean())}
    return metrics


def length_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Return lengths in tokens, and the share of completions that was cut at the limit."""
    lengths = np.array([len(completion.token_ids) for completion in completions])
    cut = np.array([completion.finish_reason == "length" for completion in completions])
    return {"length/mean": float(lengths.mean()), "length/std": float(lengths.std()), "truncated": float(cut.mean())}


def sample_rows(
    step: int, rollouts: Rollouts, rewards: Tensor, advantages: Tensor, logprobs: Tensor | None
) -> list[dict[str, Any]]:
    """Return one row per completion for samples.jsonl.

    ``rewards`` [N] are what is trained on: the scores less what length and distance from the reference cost;
    ``advantages`` are [N].

    ``logprobs`` [T], of the policy before the update, are recorded with the tokens; None records neither.
    """
    scores = rollouts.scores
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "prompt_id": completion.prompt.id,
            "prompt": completion.prompt.text,
            "completion": completion.text,
            "reward": float(rewards[index]),
            "parts": {name: finite_or_none(values[index]) for name, values in scores.parts.items()},
            "advantage": float(advantages[index]),
            "flags": list(rollouts.flags[index]),
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.token_ids),
        }
        for index, completion in enumerate(rollouts.completions)
    ]
    for row, completion in zip(rows, rollouts.completions, strict=True):
        if completion.prompt.messages:
            row["messages"] = [
                {"role": one.role, "content": one.content, **one.tools} for one in completion.prompt.messages
            ]
    if logprobs is not None:
        parts = torch.split(logprobs, rollouts.lengths.tolist())
        for row, completion, part in zip(rows, rollouts.completions, parts, strict=True):
            row["prompt_ids"], row["token_ids"] = list(completion.prompt_ids), list(completion.token_ids)
            row["sampler_logprobs"], row["logprobs"] = list(completion.sampler_logprobs), part.tolist()
    return rows
