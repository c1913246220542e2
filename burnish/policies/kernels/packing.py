"""How completions are laid out for a forward pass. Padding is made here, where it is needed at all, and never leaves.

Two layouts give the same numbers. ``packed`` runs each distinct prompt once, its completions behind it, all texts of a
microbatch in one row without padding. ``plain`` runs each prompt with its completion, which every architecture understands.
A model is checked on a few tokens when it is loaded, and takes what agrees with its own logits.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from burnish.policies.kernels.attention import GroupSpan, PackedAttention, UnsupportedAttention, use_attention
from burnish.policies.kernels.forward_cache import ForwardCache
from burnish.policies.kernels.linear import fast_linear
from burnish.types import Completion, Prompt

Layout = Callable[[Any, Sequence[Completion], ForwardCache | None], tuple[Tensor, Tensor]]
"""(model, completions, what is known of them) -> the state [T, d] that each token was drawn from, and the tokens [T]."""

PROBE = ((2, 3, 4), (5, 6)), ((7, 8), (3, 9, 4)), ((2, 3, 4), (4,))
"""Prompts and completions, of unequal lengths and one prompt twice, that a layout is checked on."""

PAD_ID = 0
"""A token to fill with; masked everywhere, so any will do. A tokenizer's own padding token may have been added to it alone
and have no row in the model's embedding; 0 always has one."""


@dataclass(frozen=True, slots=True)
class Pack:
    """All texts of a microbatch in one row of T tokens.

    A completion's last token is not run: nothing is drawn from the state behind it.

    Attributes:
        ids, positions: [1, T].
        texts: which token sees which.
        sources: [N], for each token of each completion, in order, the place in the row whose state it was drawn from.
        tokens: [N], those tokens.
        recorded: [T], where each token's results are recorded; empty where one's are not.
    """

    ids: Tensor
    positions: Tensor
    texts: PackedAttention
    sources: Tensor
    tokens: Tensor
    recorded: Sequence[int]


def pack(completions: Sequence[Completion], device: Any = None, recorded: ForwardCache | None = None) -> Pack:
    """Lays completions out, each distinct prompt once, whatever their order."""
    known = [None if recorded is None else recorded.places(completion) for completion in completions]
    places: list[int] = []
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, completion in enumerate(completions):
        groups.setdefault(completion.prompt_ids, []).append(place)
    ids: list[int] = []
    positions: list[int] = []
    spans = []
    sources: list[list[int]] = [[] for _ in completions]
    for prompt_ids, members in groups.items():
        start = len(ids)
        ids += prompt_ids
        positions += range(len(prompt_ids))
        if (first := known[members[0]]) is not None:
            places += first[0]
        stop = len(ids)
        inner = []
        for place in members:
            answer = completions[place].token_ids
            begin = len(ids)
            ids += answer[:-1]
            positions += range(len(prompt_ids), len(prompt_ids) + len(answer) - 1)
            if (own := known[place]) is not None:
                places += own[1]
            sources[place] = [stop - 1, *range(begin, len(ids))][: len(answer)]
            if len(ids) > begin:
                inner.append((begin, len(ids)))
        spans.append(GroupSpan(start, stop, tuple(inner)))
    tokens = [token for completion in completions for token in completion.token_ids]
    return Pack(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        PackedAttention(tuple(spans)),
        torch.tensor([source for found in sources for source in found], dtype=torch.long, device=device),
        torch.tensor(tokens, dtype=torch.long, device=device),
        () if None in known else places,
    )


def packed_states(
    model: Any, completions: Sequence[Completion], recorded: ForwardCache | None = None
) -> tuple[Tensor, Tensor]:
    """Each distinct prompt once, nothing padded."""
    if not any(completion.token_ids for completion in completions):
        return _no_states(model)
    row = pack(completions, model.device, recorded)
    find = recorded.finder(row.recorded) if recorded is not None and row.recorded else None
    on_cpu = row.ids.device.type == "cpu"
    # The products are the CPU's: a GPU's results must not depend on the name of the processor beside it.
    with use_attention(unwrap_peft(model), row.texts, partial(fast_linear, find) if on_cpu else nullcontext):
        states = get_backbone(model)(input_ids=row.ids, position_ids=row.positions, use_cache=False)[0][0]
    # All samples of a prompt follow its last token. The backward pass of indexing on a CPU, and of index_select on a GPU,
    # adds their gradients with atomics, so that the bits would depend on a race of threads.
    return states.index_select(0, row.sources) if on_cpu else states[row.sources], row.tokens


def padded_states(
    model: Any, completions: Sequence[Completion], recorded: ForwardCache | None = None
) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left and completions on the right, so that all completions start in the same column."""
    if not any(completion.token_ids for completion in completions):
        return _no_states(model)
    inputs, chosen, answers = _padded_texts(model, completions)
    longest = answers.shape[1]
    states = get_backbone(model)(**inputs, use_cache=False)[0]
    return states[:, -longest - 1 : -1][chosen], answers[chosen]


def padded_logits(model: Any, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
    """As ``plain``, but the logits [T, V] that the model's own head makes, whatever it does beside a product."""
    if not any(completion.token_ids for completion in completions):
        weight = model.get_input_embeddings().weight
        return weight.new_zeros(0, weight.shape[0]), torch.zeros(0, dtype=torch.long, device=weight.device)
    inputs, chosen, answers = _padded_texts(model, completions)
    longest = answers.shape[1]
    logits = model(**inputs, use_cache=False, **logits_to_keep_option(model, longest + 1)).logits
    # The last token's own logits predict what comes after it and are not needed.
    return logits[:, -longest - 1 : -1][chosen], answers[chosen]


def token_positions(mask: Tensor) -> Tensor:
    """Position of each real token in its own text, [B, T]; padding takes 0."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def padded(rows: Sequence[Sequence[int]], *, left: bool, device: Any = None) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and their mask [B, T], 1 on real tokens."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD_ID)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
        ids[row, place] = torch.tensor(tokens, dtype=torch.long)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def _padded_texts(model: Any, completions: Sequence[Completion]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A model's inputs, which of the answers' places are real [B, L], and the answers [B, L]."""
    prompts, prompt_mask = padded([c.prompt_ids for c in completions], left=True, device=model.device)
    answers, answer_mask = padded([c.token_ids for c in completions], left=False, device=model.device)
    mask = torch.cat([prompt_mask, answer_mask], 1)
    inputs = {
        "input_ids": torch.cat([prompts, answers], 1), "attention_mask": mask, "position_ids": token_positions(mask)
    }  # fmt: skip
    return inputs, answer_mask.bool(), answers


def unwrap_peft(model: Any) -> Any:
    """The transformers model, which a peft model is wrapped around."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def get_backbone(model: Any) -> Any:
    """The transformers model without its head."""
    return unwrap_peft(model).base_model


def get_linear_head(model: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight [V, d] and bias of the head, or None where it is no plain product."""
    found = unwrap_peft(model).get_output_embeddings()
    return (found.weight, found.bias) if type(found) is torch.nn.Linear else None


def _no_states(model: Any) -> tuple[Tensor, Tensor]:
    """What a layout returns where no completion has a token: there is nothing to run the model on."""
    found = get_linear_head(model)
    weight = model.get_input_embeddings().weight if found is None else found[0]
    return weight.new_zeros(0, weight.shape[1]), torch.zeros(0, dtype=torch.long, device=weight.device)


def logits_to_keep_option(model: Any, count: int) -> dict[str, int]:
    """The argument that keeps the head off all but the last ``count`` tokens, where the model has it."""
    return (
        {"logits_to_keep": count}
        if "logits_to_keep" in inspect.signature(unwrap_peft(model).forward).parameters
        else {}
    )


@torch.no_grad()
def choose_layout(model: Any) -> tuple[Layout | None, str]:
    """``packed`` where it agrees with the model's own logits on a few tokens; else ``plain``, or None where a product with
    the head's weight does not give the model's logits either; and the reason, empty for ``packed``."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    probe = [
        Completion(Prompt("", ""), _within(prompt, vocabulary), _within(answer, vocabulary), "", (), "length")
        for prompt, answer in PROBE
    ]
    expected, _ = padded_logits(model, probe)
    reason = ""
    for layout in (packed_states, padded_states):
        found = _distance(model, layout, probe, expected)
        if not found:
            return layout, reason
        reason = reason or found
    return None, reason


def _distance(model: Any, layout: Layout, probe: Sequence[Completion], expected: Tensor) -> str:
    """Why a layout does not do for a model; empty where it does."""
    product = get_linear_head(model)
    if product is None:
        return "its head is no plain product"
    try:
        states, _ = layout(model, probe, None)
        logits = torch.nn.functional.linear(states, *product)
    except UnsupportedAttention as error:
        return str(error)
    except Exception as error:  # whatever an architecture does not support, the next layout does
        return f"its layers cannot be run on a packed row ({type(error).__name__}: {str(error)[:80]})"
    scale = max(float(expected.abs().max()), 1e-9)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(expected.dtype, 5e-2)
    distance = float((logits - expected).abs().max()) / scale
    if not distance <= tolerance:
        return f"packing moves its logits by {distance:.1e} of their size"
    return ""


def _within(tokens: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    return tuple(token % vocabulary for token in tokens)


def activation_bytes_per_token(model: Any) -> int:
    """ByteVocabulary that the layers keep for the backward pass, a token; counted on a few tokens."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 32
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    saving = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with torch.enable_grad(), saving, fast_linear():
        states = get_backbone(model)(input_ids=ids, use_cache=False)[
            0
        ]  # held, so that no storage is given to another tensor
    total = sum(kept.values())
    del states
    return total // tokens


def device_memory_bytes(device: torch.device) -> int:
    """Size of the memory that a device computes in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 << 30
