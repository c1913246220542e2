"""What a step says of itself: one flat dict of numbers, and a row for each sample."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from burnish.algorithms.kl import k1, k3
from burnish.algorithms.ops import FARTHEST
from burnish.system.machine import peak_memory
from burnish.types import Completion, Microbatch, Scores


class Totals:
    """Sums over the updates and microbatches of a step, kept in float64.

    Args:
        corrected: whether the loss has importance weights of sampler against trainer.
    """

    def __init__(self, *, corrected: bool = False) -> None:
        self._corrected = corrected
        self.loss = 0.0
        """Of the update that is going on."""
        self._updates: list[tuple[float, float]] = []
        self._critic: list[tuple[float, float]] = []
        self._tokens = 0
        self._sums: dict[str, float] = {}
        self._weights, self._squares = 0.0, 0.0

    def add(
        self,
        loss: Tensor,
        logprobs: Tensor,
        old: Tensor,
        entropy: Tensor,
        clipped: tuple[Tensor, Tensor],
        factor: Tensor,
        batch: Microbatch,
    ) -> None:
        """One microbatch, everything without gradient.

        Args:
            old: log-probabilities before the first update.
            factor: the importance weights of sampler against trainer.
        """
        self.loss += float(loss)
        self._tokens += len(logprobs)
        sums = {
            "entropy": entropy.double().sum(),
            # k3 of the sampler against the trainer on the same weights: zero but for rounding.
            "mismatch_kl": k3(batch.sampler_logprobs, old).sum(),
            "clip_fraction": (clipped[0] | clipped[1]).sum(),
            "clip_fraction/low": clipped[0].sum(),
            "clip_fraction/high": clipped[1].sum(),
        }
        if self._corrected:
            sums["importance/mean"] = factor.sum()
            sums["importance/dropped"] = (factor == 0).sum()
        if batch.old_logprobs is not None:
            # How far the updates have gone: KL(old || new), sampled from old.
            sums["update_kl"] = k3(old, logprobs).sum()
        if batch.reference_logprobs is not None:
            sums["kl"] = k3(logprobs, batch.reference_logprobs).sum()
            sums["kl/k1"] = k1(logprobs, batch.reference_logprobs).sum()
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        weights = (logprobs - batch.sampler_logprobs).clamp(-FARTHEST, FARTHEST).exp()
        self._weights += float(weights.sum())
        self._squares += float(weights.square().sum())

    def updated(self, grad_norm: float) -> None:
        """Ends an update."""
        self._updates.append((self.loss, grad_norm))
        self.loss = 0.0

    def criticised(self, loss: float, grad_norm: float) -> None:
        """What an update was to the critic."""
        self._critic.append((loss, grad_norm))

    def metrics(self) -> dict[str, float]:
        """Means over tokens; loss and norm of the gradient, means over updates; and the share of tokens that count as
        samples of the policy as it is now (Kong 1992)."""
        count = len(self._updates)
        return {
            "loss": sum(loss for loss, _ in self._updates) / count,
            "grad_norm": sum(norm for _, norm in self._updates) / count,
            **{name: value / self._tokens for name, value in sorted(self._sums.items())},
            **(
                {
                    "critic/loss": sum(loss for loss, _ in self._critic) / count,
                    "critic/grad_norm": sum(norm for _, norm in self._critic) / count,
                }
                if self._critic
                else {}
            ),
            "effective_sample_size": self._weights**2 / (self._tokens * self._squares),
        }


def reward_metrics(scores: Scores) -> dict[str, float]:
    """reward/mean, reward/std and the mean of each part, since the mean of a normalised total would be 0 at every step;
    gate/<part>, the share of completions that reached its gate; weight/<part>, where that follows a schedule."""
    parts = {f"reward/{name}": float(values.mean()) for name, values in scores.parts.items()}
    plain = scores.total if scores.unnormalised is None else scores.unnormalised
    gates = {f"gate/{name}": float(reached.mean()) for name, reached in scores.passed.items()}
    weights = {f"weight/{name}": scores.weights[name] for name in scores.scheduled}
    return {"reward/mean": float(plain.mean()), "reward/std": float(plain.std()), **parts, **gates, **weights}


def pair_metrics(margins: Tensor) -> dict[str, float]:
    """Of DPO's pairs [P], not-a-number where a prompt has none: their share, and where there are any their mean loss and
    margin before the step."""
    found = margins[~margins.isnan()]
    metrics = {"preference/pairs": len(found) / len(margins)}
    if len(found):
        loss = -nn.functional.logsigmoid(found).mean()
        metrics |= {"preference/loss": float(loss), "preference/margin": float(found.mean())}
    return metrics


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
    """Seconds by name of what they were spent on. What no lap names is the update's, the longest part."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._laps: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._laps[name] = self._laps.get(name, 0.0) + time.perf_counter() - begin

    def metrics(self, tokens: int) -> dict[str, float]:
        """Seconds and rates of a step, and MB of memory that the process had at most until now."""
        total = time.perf_counter() - self._begin
        laps = {**self._laps, "update": total - sum(self._laps.values())}
        return {
            "tokens": tokens,
            "tokens_per_second": tokens / total,
            **{f"time/{name}": seconds for name, seconds in laps.items()},
            "time/step": total,
            "memory/peak": peak_memory() / 1e6,
        }
