"""Checks of a module before it becomes a policy, on a few tokens.

The shape and kind of its scores; no score depends on later tokens or on other rows; a state continues a text exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from burnish.errors import InputError, one_line

LENGTH = 6
"""Tokens of the text that a module is checked on."""


@torch.no_grad()
def check_module(module: nn.Module, vocabulary: int, kind: str, name: str, device: torch.device) -> None:
    """Raise InputError with the reason if the module violates the contract.

    ``vocabulary`` is V, the required number of scores; ``kind`` is "logits", "probabilities" or "logprobs".
    """
    where = f"module '{name}'"
    # Row 0 is a text; each other row t is the same text with all tokens from position t on changed.
    text = (3 * torch.arange(LENGTH) + 1) % vocabulary
    rows = text.repeat(LENGTH, 1)
    for row in range(1, LENGTH):
        rows[row, row:] = (rows[row, row:] + 1) % vocabulary
    rows = rows.to(device)
    scores = _scores(module, rows, vocabulary, where)
    _check_kind(scores, kind, where)
    scale = float(scores.abs().max())
    tolerance = scale * {torch.float64: 1e-9, torch.float32: 1e-4}.get(scores.dtype, 5e-2)
    for row in range(1, LENGTH):
        moved = float((scores[row, :row] - scores[0, :row]).abs().max())
        if not moved <= tolerance:
            raise InputError(
                f"{where}: changing token {row + 1} moved the scores before it by {moved:.1e}, so it looks ahead; a "
                "policy must not (a bidirectional layer, attention without a causal mask, a norm or softmax over time)"
            )
    for length in (LENGTH - 1, 1):
        alone = _scores(module, rows[:1, :length], vocabulary, where)
        moved = float((alone - scores[:1, :length]).abs().max())
        if not moved <= tolerance:
            raise InputError(
                f"{where}: the scores of the first {length} tokens moved by {moved:.1e} with the rest of the batch; a "
                "text's scores must depend on nothing else (dropout that is always on, a norm over the batch)"
            )
    if callable(getattr(module, "advance", None)):
        _check_advance(module, rows, scores, tolerance, where)


def _scores(module: nn.Module, ids: Tensor, vocabulary: int, where: str) -> Tensor:
    try:
        scores: Any = module(ids)
    except Exception as error:
        reason = one_line(error)[:200]
        raise InputError(f"{where} raised {type(error).__name__} for token ids {list(ids.shape)}: {reason}") from error
    if not isinstance(scores, Tensor):
        raise InputError(
            f"{where} returns a {type(scores).__name__}: wrap it in a module that returns the scores alone"
        )
    expected = [*ids.shape, vocabulary]
    if list(scores.shape) != expected:
        hint = ""
        if scores.dim() == 2:
            hint = "; scores are needed at every position, not after the last token alone "
            hint += "(Keras: return_sequences=True)"
        elif list(scores.shape[:-1]) == expected[:-1]:
            hint = f": the vocabulary has {vocabulary} tokens, the module {scores.shape[-1]} scores"
        raise InputError(f"{where} returns {list(scores.shape)} for token ids {list(ids.shape)}, not {expected}{hint}")
    if not scores.is_floating_point() or not bool(scores.isfinite().all()):
        raise InputError(
            f"{where} returns scores that are not finite numbers ({scores.dtype}): check its weights; give a token "
            "that must not be sampled a large negative logit, not minus infinity"
        )
    return scores


def _check_kind(scores: Tensor, kind: str, where: str) -> None:
    exact = scores.double()
    sums = exact.sum(-1)
    sum_to_one = bool((exact >= 0).all()) and bool(((sums - 1).abs() < 1e-2).all())
    masses = exact.logsumexp(-1).exp()
    if kind == "logits" and sum_to_one:
        raise InputError(
            f"{where}: its scores are not negative and sum to 1 in every row, so they are not logits: set "
            'policy.scores = "probabilities", or take the softmax out'
        )
    if kind == "probabilities" and not sum_to_one:
        raise InputError(
            f'{where}: policy.scores = "probabilities", but a row of scores has the smallest {float(exact.min()):.3g} '
            f'and the sum {float(sums.flatten()[0]):.3g}, not 1: set policy.scores = "logits", or put a softmax over '
            "the last dimension"
        )
    if kind == "logprobs" and not bool(((masses - 1).abs() < 1e-2).all()):
        raise InputError(
            f'{where}: policy.scores = "logprobs", but the probabilities of a row sum to '
            f'{float(masses.flatten()[0]):.3g}, not 1: set policy.scores = "logits", or put a log_softmax over '
            "the last dimension"
        )


def _check_advance(module: Any, rows: Tensor, scores: Tensor, tolerance: float, where: str) -> None:
    """Raise InputError unless reading in two parts, the second with reordered rows, gives the scores of one pass."""
    half = LENGTH // 2
    order = torch.arange(len(rows), device=rows.device).flip(0)
    try:
        first, state = module.advance(rows[:, :half], None)
        second, _ = module.advance(rows[order, half:], tuple(part[order] for part in state))
    except Exception as error:
        raise InputError(f"{where}: its advance() raised {type(error).__name__}: {one_line(error)[:200]}") from error
    moved = float((torch.cat([first, second[order]], 1) - scores).abs().max())
    if not moved <= tolerance:
        raise InputError(
            f"{where}: reading on from a state moves the scores by {moved:.1e}: its advance() is not its forward(), "
            "or the state's first dimension is not the batch"
        )
