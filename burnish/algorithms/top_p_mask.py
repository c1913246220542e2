"""NLPO's top-p mask: tokens restricted to those that a lagged policy finds probable (arXiv 2210.01241, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.algorithms.checks import check_equal_shapes, check_rank, check_shape


def top_p_set(logits: Tensor, top_p: float) -> Tensor:
    """Return the smallest set of tokens whose probability reaches ``top_p``; [..., V] bool. Ties go to the lower id."""
    check_rank("logits", logits, "[..., V]", 1)
    ordered, order = logits.detach().sort(dim=-1, descending=True, stable=True)
    mass = ordered.double().softmax(-1)
    keep = mass.cumsum(-1) - mass < top_p
    return torch.zeros_like(keep).scatter(-1, order, keep)


def masked_logprobs(logits: Tensor, lagged_logits: Tensor, top_p: float, always: Tensor | None = None) -> Tensor:
    """Return log pi(a|s), renormalised over the lagged policy's top-p set of each state; minus infinity outside.

    The set does not depend on the policy's own weights, so that this has the gradient of the masked policy. Sampler and
    trainer must both use it: a ratio of masked to unmasked probabilities would be off by the mass that is cut.

    Args:
        logits, lagged_logits: [..., V].
        always: [...] tokens that are always kept, as in ``sampling_logprobs``.
    """
    check_equal_shapes(logits=logits, lagged_logits=lagged_logits)
    if always is not None:
        check_shape("always", always, logits.shape[:-1], "[...]")
    keep = top_p_set(lagged_logits, top_p)
    if always is not None:
        keep = keep.scatter(-1, always.unsqueeze(-1), True)
    return logits.masked_fill(~keep, float("-inf")).log_softmax(-1)
