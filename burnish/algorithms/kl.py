"""Estimators of KL(pi || reference) from sampled tokens, and their gradients.

With d = log pi(a|s) - log reference(a|s) on tokens sampled from pi (Schulman 2020, "Approximating KL Divergence",
joschu.net/blog/kl-approx.html):

    k1 = d                  unbiased, high variance, may be negative
    k2 = d^2 / 2            biased, never negative
    k3 = exp(-d) - 1 + d    unbiased, never negative

A good estimate of the value need not have a good gradient (arXiv 2506.09477; arXiv 2510.01555; arXiv 2512.21852):

- In the reward (no gradient through it, only the score function), k1 gives the exact gradient of the sequence's
  KL(pi || reference); k2 and k3 do not.
- In the loss (differentiated directly), k1's gradient has mean zero and has no effect; k2's is the gradient of the
  KL(pi || reference) of each visited state, with the visits held fixed; k3's is that of the forward
  KL(reference || pi) of each visited state.

``burnish verify`` measures each of these statements.
"""

from __future__ import annotations

from torch import Tensor

from burnish.algorithms.checks import check_equal_shapes


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return d per token; [T], nats."""
    check_equal_shapes(logprobs=logprobs, reference_logprobs=reference_logprobs)
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return d^2 / 2 per token; [T]."""
    check_equal_shapes(logprobs=logprobs, reference_logprobs=reference_logprobs)
    return (logprobs - reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return exp(-d) - 1 + d per token; [T], nats."""
    check_equal_shapes(logprobs=logprobs, reference_logprobs=reference_logprobs)
    difference = logprobs - reference_logprobs
    # expm1 keeps the digits of a small d, as at the start of training.
    return (-difference).expm1() + difference


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def adapted_coefficient(coefficient: float, kl: float, *, target: float, rate: float = 0.1) -> float:
    """Return the next coefficient, b (1 + rate * e) with e = clip((kl - target) / target, -0.2, 0.2).

    Source: arXiv 1909.08593, section 2.2. ``kl`` is that of whole completions in this step, nats; ``rate`` is K_b.
    """
    error = max(-0.2, min(0.2, (kl - target) / target))
    return coefficient * (1 + rate * error)
