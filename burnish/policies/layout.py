"""How completions are laid out for a forward pass. Padding is made here and never leaves.

Two layouts give the same numbers. ``plain`` runs each prompt with its completion, which every architecture understands.
``shared`` runs each distinct prompt once and lets its completions attend to its keys and values, with gradient, which
leaves out most of the work where G samples share a prompt; a model is checked for it when it is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.types import Completion, Prompt

Layout = Callable[[Any, Sequence[Completion], int], tuple[Tensor, Tensor]]
"""(model, completions, padding id) -> logits [T, V] each token was drawn from, and the tokens [T]."""

PROBE = ((2, 3, 4), (5, 6)), ((7, 8), (3, 9, 4)), ((2, 3, 4), (4,))
"""Prompts and completions, of unequal lengths and one prompt twice, that a layout is checked on."""


def positions(mask: Tensor) -> Tensor:
    """Position of each real token in its own text, [B, T]; padding takes 0."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def padded(rows: Sequence[Sequence[int]], padding_id: int, *, left: bool, device: Any = None) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and their mask [B, T], 1 on real tokens."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), padding_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens, dtype=torch.long)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def plain(model: Any, completions: Sequence[Completion], padding_id: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left and completions on the right, so that all completions start in the same column."""
    if not any(completion.token_ids for completion in completions):
        return _no_logits(model)
    prompts, prompt_mask = padded([c.prompt_ids for c in completions], padding_id, left=True, device=model.device)
    answers, answer_mask = padded([c.token_ids for c in completions], padding_id, left=False, device=model.device)
    mask = torch.cat([prompt_mask, answer_mask], 1)
    longest = answers.shape[1]
    output = model(
        input_ids=torch.cat([prompts, answers], 1),
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
        **keep_logits(model, longest + 1),
    )
    chosen = answer_mask.bool()
    # The last token's own logits predict what comes after it and are not needed.
    return output.logits[:, -longest - 1 : -1][chosen], answers[chosen]


def shared(model: Any, completions: Sequence[Completion], padding_id: int) -> tuple[Tensor, Tensor]:
    """Each distinct prompt once; its completions continue from its keys and values."""
    if not any(completion.token_ids for completion in completions):
        return _no_logits(model)
    distinct = list(dict.fromkeys(completion.prompt_ids for completion in completions))
    place = {prompt_ids: row for row, prompt_ids in enumerate(distinct)}
    owner = torch.tensor([place[completion.prompt_ids] for completion in completions], device=model.device)
    prompts, prompt_mask = padded(distinct, padding_id, left=True, device=model.device)
    answers, answer_mask = padded([c.token_ids for c in completions], padding_id, left=False, device=model.device)
    output = model(
        input_ids=prompts,
        attention_mask=prompt_mask,
        position_ids=positions(prompt_mask),
        use_cache=True,
        **keep_logits(model, 1),
    )
    logits = output.logits[:, -1:][owner]
    if answers.shape[1] > 1:
        cache = output.past_key_values
        cache.batch_select_indices(owner)
        mask = torch.cat([prompt_mask[owner], answer_mask[:, :-1]], 1)
        rest = model(
            input_ids=answers[:, :-1],
            attention_mask=mask,
            position_ids=positions(mask)[:, prompts.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, rest.logits], 1)
    chosen = answer_mask.bool()
    return logits[chosen], answers[chosen]


def _no_logits(model: Any) -> tuple[Tensor, Tensor]:
    """What both layouts return where no completion has a token: there is nothing to run the model on."""
    weight = model.get_input_embeddings().weight
    return weight.new_zeros(0, weight.shape[0]), torch.zeros(0, dtype=torch.long, device=weight.device)


def keep_logits(model: Any, count: int) -> dict[str, int]:
    """The argument that keeps the head off all but the last ``count`` tokens, where the model has it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}


@torch.no_grad()
def fitting_layout(model: Any, padding_id: int) -> tuple[Layout, str]:
    """``shared`` where it agrees with ``plain`` on a few tokens, else ``plain`` and the reason."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    probe = [
        Completion(Prompt("", ""), _within(prompt, vocabulary), _within(answer, vocabulary), "", (), "length")
        for prompt, answer in PROBE
    ]
    expected, _ = plain(model, probe, padding_id)
    try:
        found, _ = shared(model, probe, padding_id)
    except Exception as error:  # whatever an architecture does not support, the plain layout does
        return plain, f"its cache cannot be shared ({type(error).__name__}: {str(error)[:80]})"
    scale = float(expected.abs().max())
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(expected.dtype, 5e-2)
    distance = float((found - expected).abs().max()) / max(scale, 1e-9)
    if not distance <= tolerance:
        return plain, f"sharing the prompt moves its logits by {distance:.1e} of their size"
    return shared, ""


def _within(tokens: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    return tuple(token % vocabulary for token in tokens)
