"""Packed attention on a GPU: torch's FlexAttention with a mask in which samples share their prompt.

One compiled kernel covers all texts of a microbatch, forward and backward, whatever their lengths, and skips blocks in
which nobody attends to anybody. Layout of the tensors: see ``attention``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from burnish.errors import one_line
from burnish.policies.kernels.spans import GroupSpan

NARROWEST = 16
"""Least head dimension of the kernel."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 1e-3
"""Of the trial, whose numbers are about 1."""
PROMPT = 0
"""Part number of a prompt's tokens; completions count from 1."""


def fits_flex(query: Tensor, value: Tensor) -> bool:
    """Return whether the kernel can compute the attention of these tensors of ``PackedAttention.attend``."""
    wide = min(query.shape[-1], value.shape[-1]) >= NARROWEST
    return query.is_cuda and query.dtype in DTYPES and wide and flex_error(query.device) is None


@cache
def flex_error(device: torch.device) -> str | None:
    """Return why the kernel cannot be used on a device (it is compiled there), or None: tried once, with its gradient."""
    spans, length = (GroupSpan(0, 5, ((5, 9), (9, 12))), GroupSpan(12, 15, ((15, 16),))), 16
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, length, NARROWEST), (2, length, NARROWEST), (2, length, NARROWEST))
    try:
        query, key, value = (torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes)
        with torch.enable_grad():
            scores = (query @ key[:, None].mT * 0.3).masked_fill(~_sees(spans, length).to(device), float("-inf"))
            plain = (scores.softmax(-1) @ value[:, None]).movedim(2, 0)
            both = flex_packed(query, key, value, spans, 0.3), plain
            found = [(one, *torch.autograd.grad(one.square().sum(), (query, key, value))) for one in both]
        worst = max(float((ours - theirs).detach().abs().max()) for ours, theirs in zip(*found, strict=True))
    except Exception as error:  # a compiler or a driver that does not fit
        return f"{type(error).__name__}: {one_line(error)[:200]}"
    return None if worst < TOLERANCE else f"it is off by {worst:.1e}"


def flex_packed(query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float) -> Tensor:
    """Return the output [T, K, g, D] for query [K, g, T, D], key and value [K, T, D]."""
    mask = block_mask(spans, query.shape[2], query.device)
    # [1, H, T, D], and keys once for their g query heads.
    output: Tensor = _kernel(query.device.type)(
        query.flatten(0, 1).unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), block_mask=mask, scale=scale,
        enable_gqa=query.shape[1] > 1,
    )  # fmt: skip
    return output.view(*query.shape[:3], -1).permute(2, 0, 1, 3)


@cache
def _kernel(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Lengths differ from microbatch to microbatch: one kernel for all of them.
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


@lru_cache(maxsize=4)
def block_mask(spans: tuple[GroupSpan, ...], length: int, device: torch.device) -> Any:
    """Return the mask of a packed sequence, which all layers of a microbatch use."""
    from torch.nn.attention.flex_attention import create_block_mask

    groups, parts = text_numbers(spans, length)
    group, part = torch.tensor(groups, device=device), torch.tensor(parts, device=device)

    def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (part[key] == PROMPT) | (part[key] == part[query])
        return (query >= key) & (group[query] == group[key]) & own

    return create_block_mask(attends, None, None, length, length, device=device)


def _sees(spans: Sequence[GroupSpan], length: int) -> Tensor:
    """Return which positions [T, T] attend to which, text by text."""
    sees = torch.zeros(length, length, dtype=torch.bool)
    for span in spans:
        for start, stop in ((span.start, span.stop), *span.completions):
            sees[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            if start != span.start:
                sees[start:stop, span.start : span.stop] = True
    return sees


def text_numbers(spans: Sequence[GroupSpan], length: int) -> tuple[list[int], list[int]]:
    """Return, for each position of a packed sequence, the number of its group and of its part of it."""
    groups, parts = [-1] * length, [PROMPT] * length
    for number, span in enumerate(spans):
        groups[span.start : span.stop] = [number] * (span.stop - span.start)
        for part, (start, stop) in enumerate(span.completions, 1):
            groups[start:stop] = [number] * (stop - start)
            parts[start:stop] = [part] * (stop - start)
    return groups, parts
