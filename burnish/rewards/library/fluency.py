"""The reward for text that the frozen reference policy finds likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from burnish.errors import BurnishError, InputError
from burnish.rewards.registry import check_choice, reward
from burnish.types import Completion

if TYPE_CHECKING:
    from burnish.protocols import LanguageModel

FORMS = ("log", "raw")
COMPLETIONS_AT_ONCE = 16
"""Completions per forward pass of the reference, which bounds the memory for any N."""


@reward
def perplexity(
    completions: Sequence[Completion], reference_policy: LanguageModel, *, form: str = "log", worst: float = 1000.0
) -> list[float]:
    """Low perplexity of a completion, given its prompt, under the frozen reference policy.

    ``form="log"`` is ``1 - min(mean NLL, log worst) / log worst``, in [0, 1]: 1 for a text that the reference is
    certain of, 0 for a perplexity of ``worst`` or more. ``form="raw"`` is minus the perplexity, in (-inf, -1].

    Fails by: preferring bland and repetitive text, since a language model is most certain of a loop; add
    ``repetition`` and watch distinct-2. The raw form is also unbounded: one odd token changes it by hundreds, which
    swamps a part in [0, 1] such as ``bleu``.

    The end-of-text token counts like any other, probabilities are at temperature 1, and a completion without tokens
    gets the reward of perplexity ``worst``.

    Args:
        form: "log" or "raw".
        worst: perplexity at which the log form reaches 0; above 1.

    Source: Jelinek et al. 1977 (perplexity); Holtzman et al. 2020, arXiv 1904.09751 (why likely text degenerates).
    """
    check_choice("perplexity", "form", form, FORMS)
    if not (math.isfinite(worst) and worst > 1):
        raise InputError(f"perplexity: worst = {worst}: must be a number above 1")
    ceiling = math.log(worst)
    lengths = [len(completion.token_ids) for completion in completions]
    means = [
        total / length if length else ceiling
        for total, length in zip(negative_log_likelihoods(completions, reference_policy), lengths, strict=True)
    ]
    if form == "raw":
        # math.exp overflows above 709.78; the combination reports an infinite reward with its prompt.
        return [-math.exp(mean) if mean < 709 else -math.inf for mean in means]
    return [1.0 - min(mean, ceiling) / ceiling for mean in means]


def negative_log_likelihoods(completions: Sequence[Completion], model: LanguageModel) -> list[float]:
    """Return the sum over each completion's tokens of -log p(token | prompt, tokens before), [N] in nats.

    Raises BurnishError if the model does not return one log-probability per token.
    """
    import torch

    sums: list[float] = []
    # Not every model can process a text without tokens, and its sum is 0.
    scored = [completion for completion in completions if completion.token_ids]
    for start in range(0, len(scored), COMPLETIONS_AT_ONCE):
        chunk = scored[start : start + COMPLETIONS_AT_ONCE]
        lengths = [len(completion.token_ids) for completion in chunk]
        # In float64, so that the order of a long sum does not change its last digits.
        logprobs = model.token_logprobs(chunk).double().cpu()
        if logprobs.numel() != sum(lengths):
            raise BurnishError(
                f"token_logprobs of {type(model).__name__} returned {logprobs.numel()} values for {sum(lengths)} tokens"
            )
        # 0.0 - x rather than -x: the NLL of a certain text is 0, not -0.
        sums.extend(0.0 - float(part.sum()) for part in torch.split(logprobs.flatten(), lengths))
    remaining = iter(sums)
    return [next(remaining) if completion.token_ids else 0.0 for completion in completions]
