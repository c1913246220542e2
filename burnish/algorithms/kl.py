"""Estimators of KL(pi || reference) from sampled tokens, and what their gradients really are.

With d = log pi(a|s) - log reference(a|s) on tokens sampled from pi (Schulman 2020, "Approximating KL Divergence",
joschu.net/blog/kl-approx.html):

    k1 = d                  unbiased, high variance, may be negative
    k2 = d^2 / 2            biased, never negative
    k3 = exp(-d) - 1 + d    unbiased, never negative

A good estimate of the value need not have a good gradient (arXiv 2506.09477; arXiv 2510.01555; arXiv 2512.21852):

- in the reward (no gradient through it; the score function does the work), k1 gives the exact gradient of the sequence's
  KL(pi || reference); k2 and k3 give something else;
- in the loss (differentiated as it stands), k1's gradient has mean zero, so it pulls nowhere; k2's is the gradient of
  the KL(pi || reference) of each visited state, the states themselves held fixed; k3's is that of the forward
  KL(reference || pi) of each visited state.

``burnish verify`` measures each of these sentences.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d, a token; [T], nats."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d^2 / 2, a token; [T]."""
    return (logprobs - reference_logprobs).square() / 2


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d, a token; [T], nats."""
    difference = logprobs - reference_logprobs
    # expm1 keeps the digits where d is small, which is where a policy starts.
    return (-difference).expm1() + difference


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def adapted_coefficient(coefficient: float, kl: float, *, target: float, rate: float = 0.1) -> float:
    """The next coefficient: b (1 + rate * e), e = clip((kl - target) / target, -0.2, 0.2) (arXiv 1909.08593, section 2.2).

    Args:
        kl: the step's KL of whole completions, nats.
        target: what it shall be, nats.
        rate: the paper's K_b.
    """
    error = max(-0.2, min(0.2, (kl - target) / target))
    return coefficient * (1 + rate * error)
