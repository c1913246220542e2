"""Preference losses: Bradley-Terry, DPO, IPO, SimPO, ORPO and KTO, one loss per pair.

Shapes: M pairs (or M single completions for KTO). A log-ratio is the sum over a completion's tokens of
log pi(y|x) - log pi_ref(y|x), in nats; a score is a reward model's value of a whole text. No function averages: the
caller weighs and sums.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from burnish.algorithms.checks import check_flat


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centre: float = 0.0) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin) + centre * (r_chosen + r_rejected)^2, [M].

    The first term is minus the log-likelihood of the Bradley-Terry model (Bradley and Terry 1952; for language models
    arXiv 2203.02155, equation 1), with the margin of arXiv 2307.09288, equation 2. Comparisons do not determine the
    level of the scores; the second term (arXiv 2312.09244) keeps their mean at zero.

    Args:
        chosen, rejected: scores, [M].
        margin: labelled margin of the chosen text, [M] or one number.
    """
    check_flat(chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor) and margin.dim() > 0:
        check_flat(chosen=chosen, margin=margin)
    loss = -logsigmoid(chosen - rejected - margin)
    return loss + centre * (chosen + rejected) ** 2 if centre else loss


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta (h_chosen - h_rejected)), [M]: direct preference optimisation, arXiv 2305.18290, equation 7.

    The arguments are the log-ratios h; beta > 0 is the strength of the pull towards the reference. With log-likelihoods
    instead, it is the preference term of CPO (arXiv 2401.08417). ``label_smoothing`` is the probability, below one half,
    that a label is wrong: the loss is its expectation over the label (Mitchell 2023, on DPO with noisy preferences).
    """
    check_flat(chosen=chosen, rejected=rejected)
    return _smoothed(beta * (chosen - rejected), label_smoothing)


def simpo_loss(
    chosen: Tensor, rejected: Tensor, beta: float, margin: float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(beta (l_chosen - l_rejected) - margin), [M]: SimPO, arXiv 2405.14734.

    The arguments are mean log-likelihoods per token, without a reference; ``margin`` is the paper's gamma.
    """
    check_flat(chosen=chosen, rejected=rejected)
    return _smoothed(beta * (chosen - rejected) - margin, label_smoothing)


def orpo_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(log odds(chosen) - log odds(rejected)), [M]: ORPO's preference term, arXiv 2403.07691.

    odds(y) = p / (1 - p), where p is the geometric mean of the tokens' probabilities. The arguments are log p, the mean
    log-likelihoods per token.
    """
    check_flat(chosen=chosen, rejected=rejected)
    return -logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logprobs: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of log p; p is at most 1 - 1e-12, so that a certain answer has finite odds."""
    logprobs = logprobs.clamp_max(-1e-12)
    return logprobs - torch.log(-torch.expm1(logprobs))


def _smoothed(difference: Tensor, label_smoothing: float) -> Tensor:
    loss = -logsigmoid(difference)
    if not label_smoothing:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-difference)


def ipo_loss(chosen: Tensor, rejected: Tensor, tau: float) -> Tensor:
    """(h_chosen - h_rejected - 1 / (2 tau))^2, [M]: identity preference optimisation, arXiv 2310.12036, equation 17.

    The gap has a target, so that a pair with a consistent preference does not drive it to infinity as in DPO.
    Log-ratios are sums over tokens, as in the paper; some implementations use means. tau > 0 corresponds to DPO's beta.
    """
    check_flat(chosen=chosen, rejected=rejected)
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def kto_loss(
    ratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_y - v(x, y), [M]: Kahneman-Tversky optimisation, arXiv 2402.01306, equation 8.

    v = lambda_D sigmoid(beta (h - z0)) for desirable completions, lambda_U sigmoid(beta (z0 - h)) for undesirable ones.

    Args:
        ratios: log-ratios h, [M].
        desirable: bool, [M].
        reference_point: z0, without gradient; see ``kto_reference_point``.
        beta: risk aversion, above 0.
    """
    check_flat(ratios=ratios, desirable=desirable)
    gain = beta * (ratios - reference_point)
    weight = torch.full_like(gain, undesirable_weight).masked_fill(desirable, desirable_weight)
    return weight * (1 - torch.where(desirable, gain, -gain).sigmoid())


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """Return z0 = max(0, mean of the log-ratios [M]), a scalar without gradient (arXiv 2402.01306).

    Each ratio is of a prompt with another prompt's completion, a rough estimate of KL(pi || pi_ref) without sampling.
    """
    check_flat(mismatched=mismatched)
    return mismatched.detach().mean().clamp_min(0)
