"""Arrangement of completions for a forward pass: packed, padded or unpadded. Padding exists only in this module.

All layouts give the same hidden states. ``packed_states`` runs each distinct prompt once, followed by its completions,
all texts of a microbatch in one sequence without padding. ``padded_states`` runs each prompt with its completion as a
row of a padded batch, ``unpadded_states`` runs texts of equal length together. ``layout_probe`` chooses for a model.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from burnish.policies.kernels.attention import PackedAttention, UnsupportedAttention, use_attention
from burnish.policies.kernels.compiled_modules import compiled_modules
from burnish.policies.kernels.forward_cache import ForwardCache
from burnish.policies.kernels.linear import fast_linear
from burnish.policies.kernels.mixed_precision import compute_dtype, compute_precision, to_compute_dtype
from burnish.policies.kernels.spans import GroupSpan
from burnish.types import Completion

Layout = Callable[[Any, Sequence[Completion], ForwardCache | None], tuple[Tensor, Tensor]]
"""(model, completions, forward cache) -> the state [T, d] that predicts each token, and the tokens [T]."""

PAD_ID = 0
"""Token id of padding positions. Unlike the tokenizer's own, it always has a row in the embedding."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """All texts of a microbatch as one sequence of S tokens; the last token of a text predicts nothing and is not run.

    Attributes:
        ids, positions: [1, S], token ids, and the position of each token in its own text.
        attention: which tokens attend to which.
        sources: [T], for each completion token in order, the position in the sequence whose state predicts it.
        tokens: [T], the completion tokens.
        cache_slots: [S], slot of each token in the forward cache; empty unless all tokens are cached.
    """

    ids: Tensor
    positions: Tensor
    attention: PackedAttention
    sources: Tensor
    tokens: Tensor
    cache_slots: Sequence[int]


def pack(completions: Sequence[Completion], device: Any = None, cache: ForwardCache | None = None) -> PackedBatch:
    """Arrange completions as one sequence, each distinct prompt once; the completions may be in any order."""
    slots = [None if cache is None else cache.get_slots(completion) for completion in completions]
    cache_slots: list[int] = []
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, completion in enumerate(completions):
        groups.setdefault(completion.prompt_ids, []).append(index)
    ids: list[int] = []
    positions: list[int] = []
    spans = []
    sources: list[list[int]] = [[] for _ in completions]
    for prompt_ids, members in groups.items():
        start = len(ids)
        ids += prompt_ids
        positions += range(len(prompt_ids))
        if (group_slots := slots[members[0]]) is not None:
            cache_slots += group_slots[0]
        stop = len(ids)
        answer_spans = []
        for index in members:
            answer = completions[index].token_ids
            begin = len(ids)
            ids += answer[:-1]
            positions += range(len(prompt_ids), len(prompt_ids) + len(answer) - 1)
            if (own := slots[index]) is not None:
                cache_slots += own[1]
            sources[index] = [stop - 1, *range(begin, len(ids))][: len(answer)]
            if len(ids) > begin:
                answer_spans.append((begin, len(ids)))
        spans.append(GroupSpan(start, stop, tuple(answer_spans)))
    tokens = [token for completion in completions for token in completion.token_ids]
    return PackedBatch(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        PackedAttention(tuple(spans)),
        torch.tensor([source for answer in sources for source in answer], dtype=torch.long, device=device),
        torch.tensor(tokens, dtype=torch.long, device=device),
        () if None in slots else cache_slots,
    )


def hidden_states(
    layout: Layout | None, model: Any, completions: Sequence[Completion], cache: ForwardCache | None = None
) -> tuple[Tensor, Tensor]:
    """Return the state [T, d] that predicts each token, and the tokens [T], in a layout (None: unpadded)."""
    if not any(completion.token_ids for completion in completions):
        head = get_linear_head(model)
        weight = model.get_input_embeddings().weight if head is None else head[0]
        return weight.new_zeros(0, weight.shape[1]), torch.zeros(0, dtype=torch.long, device=weight.device)
    try:
        return (layout or unpadded_states)(model, completions, cache)
    except UnsupportedAttention:  # a text is longer than the attention window
        return padded_states(model, completions)


def packed_states(
    model: Any, completions: Sequence[Completion], cache: ForwardCache | None = None
) -> tuple[Tensor, Tensor]:
    """Return the states [T, d] and tokens [T] by running each distinct prompt once, without padding."""
    batch = pack(completions, model.device, cache)
    lookup = cache.lookup(batch.cache_slots) if cache is not None and batch.cache_slots else None
    on_cpu = batch.ids.device.type == "cpu"
    # fast_linear is for CPUs: the results on a GPU must not depend on the host's processor.
    faster = partial(fast_linear, lookup) if on_cpu and compute_dtype(model) is None else nullcontext
    loops = compiled_modules(unwrap_peft(model), lookup) if on_cpu and compute_dtype(model) is None else nullcontext()
    with use_attention(unwrap_peft(model), batch.attention, faster), compute_precision(model), loops:
        states = get_backbone(model)(input_ids=batch.ids, position_ids=batch.positions, use_cache=False)[0][0]
    # All samples of a prompt use the state of its last token, so its gradient is a sum. Indexing on a CPU, and
    # index_select on a GPU, add it up with atomics, in an order that differs from run to run.
    chosen = states.index_select(0, batch.sources) if on_cpu else states[batch.sources]
    return to_compute_dtype(model, chosen), batch.tokens


def padded_states(
    model: Any, completions: Sequence[Completion], cache: ForwardCache | None = None
) -> tuple[Tensor, Tensor]:
    """Return the states [T, d] and tokens [T] by running each text as a row of a batch, padded on the right.

    No mask is needed: in a causal model, no token depends on what comes after it.
    """
    return _run_rows(partial(_states, model), model, completions, [range(len(completions))])


def unpadded_states(
    model: Any, completions: Sequence[Completion], cache: ForwardCache | None = None
) -> tuple[Tensor, Tensor]:
    """Return the states [T, d] and tokens [T] by running texts of equal length together."""
    return _run_rows(partial(_states, model), model, completions, _equal_lengths(completions))


def padded_logits(model: Any, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V] of the model's own head and the tokens [T], as ``padded_states``."""
    return _run_rows(partial(_logits, model), model, completions, [range(len(completions))])


def unpadded_logits(model: Any, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V] of the model's own head and the tokens [T], as ``unpadded_states``."""
    return _run_rows(partial(_logits, model), model, completions, _equal_lengths(completions))


def _states(model: Any, ids: Tensor, first: int) -> Tensor:
    with compute_precision(model):
        states: Tensor = get_backbone(model)(input_ids=ids, use_cache=False)[0]
    return to_compute_dtype(model, states[:, first:])


def _logits(model: Any, ids: Tensor, first: int) -> Tensor:
    kept = logits_to_keep_option(model, ids.shape[1] - first)
    with compute_precision(model):
        logits: Tensor = model(input_ids=ids, use_cache=False, **kept).logits
    return logits[:, first - ids.shape[1] :]


def _equal_lengths(completions: Sequence[Completion]) -> list[list[int]]:
    """Return the indices of completions by the length of prompt and completion together."""
    groups: dict[int, list[int]] = {}
    for index, one in enumerate(completions):
        groups.setdefault(len(one.prompt_ids) + len(one.token_ids), []).append(index)
    return list(groups.values())


def _run_rows(
    run: Callable[[Tensor, int], Tensor], model: Any, completions: Sequence[Completion], groups: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return what predicts each token [T, X], and the tokens [T], from one batch per group of completions.

    Args:
        run: (ids [B, L], first) -> the results [B, L - first, X] of the columns from ``first`` on.
    """
    counts = [len(one.token_ids) for one in completions]
    starts = [0, *accumulate(counts)]
    results, order = [], []
    for members in groups:
        group = [completions[index] for index in members]
        ids, _ = pad_token_ids([(*one.prompt_ids, *one.token_ids) for one in group], left=False, device=model.device)
        first = min(len(one.prompt_ids) for one in group) - 1
        rows = [row for row, one in enumerate(group) for _ in one.token_ids]
        columns = [len(one.prompt_ids) - 1 - first + index for one in group for index in range(len(one.token_ids))]
        chosen = torch.tensor([rows, columns], dtype=torch.long, device=ids.device)
        results.append(run(ids, first)[chosen[0], chosen[1]])
        order += [position for index in members for position in range(starts[index], starts[index + 1])]
    tokens = torch.tensor([token for one in completions for token in one.token_ids]).long().to(model.device)
    if order == sorted(order):
        return torch.cat(results), tokens
    return torch.cat(results)[torch.tensor(order, device=model.device).argsort()], tokens


def pad_token_ids(rows: Sequence[Sequence[int]], *, left: bool, device: Any = None) -> tuple[Tensor, Tensor]:
    """Return token ids [B, T] and their mask [B, T], 1 for tokens and 0 for padding."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD_ID)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        columns = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
        ids[row, columns] = torch.tensor(tokens, dtype=torch.long)
        mask[row, columns] = 1
    return ids.to(device), mask.to(device)


def unwrap_peft(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def get_backbone(model: Any) -> Any:
    """Return the transformers model without its head."""
    return unwrap_peft(model).base_model


def get_linear_head(model: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return the weight [V, d] and the bias of the head, or None if the head is not a linear layer."""
    output = unwrap_peft(model).get_output_embeddings()
    if (copies := getattr(output, "modules_to_save", None)) is not None:  # of a LoRA policy that trains its head
        output = output.original_module if output.disable_adapters else copies[output.active_adapters[0]]
    if type(output) is not torch.nn.Linear:
        return None
    weight, bias = (None if one is None else to_compute_dtype(model, one) for one in (output.weight, output.bias))
    assert weight is not None
    return weight, bias


def logits_to_keep_option(model: Any, count: int) -> dict[str, int]:
    """Return the keyword argument that applies the head to the last ``count`` tokens only, if the model has one."""
    parameters = inspect.signature(unwrap_peft(model).forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in parameters else {}


def activation_bytes_per_token(model: Any, *, packed: bool) -> int:
    """Return the bytes per token that the layers store for the backward pass, measured on a few tokens.

    What is stored once, such as autocast's copies of the weights, is the same for more tokens and does not count.
    """
    fewer, more = (_stored_bytes(model, tokens, packed=packed) for tokens in (16, 32))
    return (more - fewer) // 16


def _stored_bytes(model: Any, tokens: int, *, packed: bool) -> int:
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result that its own operation stores would keep the whole graph alive

    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    saving = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    faster = fast_linear() if packed and compute_dtype(model) is None else nullcontext()
    with torch.enable_grad(), saving, faster, compute_precision(model):
        states = get_backbone(model)(input_ids=ids, use_cache=False)[0]
    total = sum(kept.values())
    del states  # held until here, so that no storage is given to another tensor
    return total


def device_memory_bytes(device: torch.device) -> int:
    """Return the size of a device's memory in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 8 << 30
