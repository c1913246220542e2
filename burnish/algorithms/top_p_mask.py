"""A sampling constraint from a lagged policy: NLPO's masked actions (RL4LMs, arXiv 2210.01241, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor


def top_p_set(logits: Tensor, top_p: float) -> Tensor:
    """The smallest set of tokens whose probability reaches ``top_p``; [..., V] bool. Ties go to the lower token id."""
    ordered, order = logits.detach().sort(dim=-1, descending=True, stable=True)
    mass = ordered.double().softmax(-1)
    keep = mass.cumsum(-1) - mass < top_p
    return torch.zeros_like(keep).scatter(-1, order, keep)


def masked_logprobs(logits: Tensor, lagged_logits: Tensor, top_p: float, always: Tensor | None = None) -> Tensor:
    """log pi(a|s) renormalised over the lagged policy's top-p set of each state; minus infinity outside.

    The set does not depend on the policy's own weights, so the gradient of this is the gradient of the masked policy
    itself. Sampler and trainer must both use it: a ratio of masked to unmasked would be off by the mass cut away.

    Args:
        logits, lagged_logits: [..., V].
        always: [...] tokens that are kept in any case, as in ``sampling_logprobs``.
    """
    keep = top_p_set(lagged_logits, top_p)
    if always is not None:
        keep = keep.scatter(-1, always.unsqueeze(-1), True)
    return logits.masked_fill(~keep, float("-inf")).log_softmax(-1)
