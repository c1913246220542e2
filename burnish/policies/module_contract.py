"""Tries a module on a few tokens before it is trusted as a policy: the shape of its scores, what they are, that no score
looks ahead or at other rows, and that reading on from a state is the same as reading from the start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from burnish.errors import InputError, one_line

LENGTH = 6
"""Tokens of the text that a module is tried on."""


@torch.no_grad()
def check_module(module: nn.Module, vocabulary: int, kind: str, name: str, device: torch.device) -> None:
    """Raises InputError that says which part of the contract the module does not keep.

    Args:
        vocabulary: V, how many scores there must be.
        kind: what the scores are said to be: "logits", "probabilities" or "logprobs".
        name: what messages call the module.
        device: where its parameters lie.
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
                f"{where}: changing token {row + 1} moved the scores before it by {moved:.1e}, so it looks ahead; a policy "
                "must not (a bidirectional layer, attention without a causal mask, a norm or softmax over time)"
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
        found: Any = module(ids)
    except Exception as error:
        reason = one_line(error)
        raise InputError(
            f"{where} raised {type(error).__name__} for token ids {list(ids.shape)}: {reason[:200]}"
        ) from error
    if not isinstance(found, Tensor):
        raise InputError(f"{where} returns a {type(found).__name__}: wrap it in a module that returns the scores alone")
    wanted = [*ids.shape, vocabulary]
    if list(found.shape) != wanted:
        hint = ""
        if found.dim() == 2:
            hint = (
                "; scores are needed at every position, not after the last token alone (Keras: return_sequences=True)"
            )
        elif list(found.shape[:-1]) == wanted[:-1]:
            hint = f": the vocabulary has {vocabulary} tokens, the module {found.shape[-1]} scores"
        raise InputError(f"{where} returns {list(found.shape)} for token ids {list(ids.shape)}, not {wanted}{hint}")
    if not found.is_floating_point() or not bool(found.isfinite().all()):
        raise InputError(
            f"{where} returns scores that are no finite numbers ({found.dtype}): check its weights; a token that must not "
            "come is given a large negative logit, not minus infinity"
        )
    return found


def _check_kind(scores: Tensor, kind: str, where: str) -> None:
    wide = scores.double()
    sums = wide.sum(-1)
    sum_to_one = bool((wide >= 0).all()) and bool(((sums - 1).abs() < 1e-2).all())
    masses = wide.logsumexp(-1).exp()
    if kind == "logits" and sum_to_one:
        raise InputError(
            f"{where}: its scores are not negative and sum to 1 in every row, so they are no logits: set policy.scores = "
            '"probabilities", or take the softmax out'
        )
    if kind == "probabilities" and not sum_to_one:
        raise InputError(
            f'{where}: policy.scores = "probabilities", but a row of scores has the smallest {float(wide.min()):.3g} and '
            f'the sum {float(sums.flatten()[0]):.3g}, not 1: set policy.scores = "logits", or put a softmax over the last '
            "dimension"
        )
    if kind == "logprobs" and not bool(((masses - 1).abs() < 1e-2).all()):
        raise InputError(
            f'{where}: policy.scores = "logprobs", but the probabilities of a row sum to {float(masses.flatten()[0]):.3g}, '
            'not 1: set policy.scores = "logits", or put a log_softmax over the last dimension'
        )


def _check_advance(module: Any, rows: Tensor, scores: Tensor, tolerance: float, where: str) -> None:
    """Read in two parts, the second for rows in another order, the scores must be those of one pass."""
    half = LENGTH // 2
    order = torch.arange(len(rows), device=rows.device).flip(0)
    try:
        first, state = module.advance(rows[:, :half], None)
        second, _ = module.advance(rows[order, half:], tuple(part[order] for part in state))
    except Exception as error:
        reason = one_line(error)
        raise InputError(f"{where}: its advance() raised {type(error).__name__}: {reason[:200]}") from error
    moved = float((torch.cat([first, second[order]], 1) - scores).abs().max())
    if not moved <= tolerance:
        raise InputError(
            f"{where}: reading on from a state moves the scores by {moved:.1e}: its advance() is not its forward(), or the "
            "state's first dimension is not the batch"
        )
