"""Choice of a model's layout by comparison with a plain forward pass of each text, when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from burnish.errors import InputError, one_line
from burnish.policies.kernels.attention import WINDOW, UnsupportedAttention
from burnish.policies.kernels.packing import (
    Layout,
    get_linear_head,
    packed_states,
    padded_logits,
    padded_states,
    unpadded_logits,
    unpadded_states,
    unwrap_peft,
)
from burnish.types import Completion, Prompt

LARGE_LOGIT = 100.0
"""Logits at which a head's non-linearity shows: soft caps of models are 15 to 50."""
SHORT, LONG = 12, 256
"""Tokens of the longest probe text: more than any window of the configuration that is shorter than ``LONG``."""
SPARSE = ("index_topk", "keep_window_size")
"""Configuration keys for the keys that sparse attention selects."""
WINDOWS = ("window", "chunk", "topk", "block", "local")
"""Parts of the names of configuration values that limit attention to some of a text's tokens."""


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The fastest layout that is exact for a model.

    Attributes:
        layout: None if a product of hidden states with the head's weight does not reproduce the logits.
        reason: why it is not ``packed_states``; "" if it is.
        logits: the layout of the model's own head.
    """

    layout: Layout | None
    reason: str
    logits: Callable[[Any, Sequence[Completion]], tuple[Tensor, Tensor]] = padded_logits


def max_text_tokens(config: Any) -> int | None:
    """Return the largest number of tokens of a text, prompt and completion together; None if there is no limit.

    It is the model's positions, or what sparse attention sees as a whole: beyond that, ties among the scores of its keys
    are broken by the text's length, so that logits depend on the text that follows.
    """
    return min(_limits(config).values(), default=None)


def name_limit(config: Any) -> str:
    """Return the sparse attention's key that limits a text, in parentheses for a message; "" if positions do."""
    limits = _limits(config)
    key = min(limits, key=limits.__getitem__, default="")
    return f" ({key} of its sparse attention)" if key in SPARSE else ""


def _limits(config: Any) -> dict[str, int]:
    limits = {name: getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", *SPARSE)}
    if isinstance(selected := limits["index_topk"], int):
        rates = getattr(config, "compress_rates", None) or {}
        limits["index_topk"] = selected * rates.get("compressed_sparse_attention", 1)
    return {name: limit for name, limit in limits.items() if isinstance(limit, int) and limit > 0}


def probe_texts(model: Any) -> list[Completion]:
    """Return three completions that test what a model does with a token's neighbours.

    The first is longer than the model's small windows. The second begins as the first does and ends otherwise, and the
    third is the beginning of the second, with its prompt.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    config = unwrap_peft(model).config.get_text_config()
    windows = [
        value
        for name, value in vars(config).items()
        if type(value) is int and 0 < value < LONG and any(part in name for part in WINDOWS)
    ]
    limit = max_text_tokens(config)
    # Room for the tokens that the samplers' probe adds.
    fitting = 4 * LONG if limit is None else max(limit - SHORT, SHORT)
    longest = min(max([SHORT, *(3 * window + SHORT for window in windows)]), fitting)
    text = [(2 + 7 * index + index * index) % vocabulary for index in range(longest)]
    turn = longest * 3 // 4
    other = text[:turn] + [(token + 1) % vocabulary for token in text[turn : turn + 2]]
    return [_completion(text[:2], text[2:]), _completion(other[:3], other[3:]), _completion(other[:3], other[3:5])]


def _completion(prompt: Sequence[int], tokens: Sequence[int]) -> Completion:
    return Completion(Prompt("", ""), tuple(prompt), tuple(tokens), "", (), "length")


def probe_tolerance(expected: Tensor) -> float:
    """Return the difference allowed by rounding, for logits of any scale."""
    relative = {torch.float64: 1e-9, torch.float32: 3e-5}.get(expected.dtype, 5e-2)
    return relative * max(float(expected.abs().max()), 1e-9)


@torch.no_grad()
def choose_layout(model: Any) -> LayoutChoice:
    """Compare the layouts with the logits of each text alone.

    Raises:
        InputError: the model cannot run on text alone, or its logits depend on what follows.
    """
    probe = long, other, beginning = probe_texts(model)
    kind = unwrap_peft(model).config.model_type
    head, reason = get_linear_head(model), "its head is not a linear layer"
    try:
        first, second = unpadded_logits(model, [long])[0], None
        if head is not None:
            second, reason = _head_logits(model, head, other)
        if second is None:
            second = unpadded_logits(model, [other])[0]
    except Exception as error:  # an architecture may need other inputs
        raise InputError(
            f"this {kind} model cannot run on text alone ({type(error).__name__}: {one_line(error)[:120]})"
        ) from error
    # The two texts have all but the last two tokens of the second in common, which no earlier logits may depend on.
    common = len(other.token_ids) - 1
    if not float((second[:common] - first[1 : 1 + common]).abs().max()) <= 10 * probe_tolerance(first):
        raise InputError(
            f"the logits of this {kind} model change with the text that follows, so it has no next-token probabilities: "
            "choose a causal model, or set is_decoder = true in the config.json of an encoder trained as a decoder"
        )
    kept = second[: len(beginning.token_ids)]
    expected = torch.cat([first, second, kept])
    if head is not None and not reason:
        for layout in (packed_states, padded_states, unpadded_states):
            mismatch = _mismatch(partial(_layout_logits, layout, model, head, probe), expected)
            if layout is packed_states and WINDOW in mismatch:  # longer texts are padded, see ``hidden_states``
                mismatch = _mismatch(partial(_layout_logits, layout, model, head, [beginning]), kept)
            if not mismatch:
                return LayoutChoice(layout, reason)
            reason = reason or mismatch
    padded = not _mismatch(lambda: padded_logits(model, probe)[0], expected)
    return LayoutChoice(None, reason, padded_logits if padded else unpadded_logits)


def _layout_logits(
    layout: Layout, model: Any, head: tuple[Tensor, Tensor | None], probe: Sequence[Completion]
) -> Tensor:
    return torch.nn.functional.linear(layout(model, probe, None)[0], *head)


def _head_logits(model: Any, head: tuple[Tensor, Tensor | None], text: Completion) -> tuple[Tensor | None, str]:
    """Return the logits of a text's tokens and "", or None and why logits are not products with the head's weight.

    The states that enter the head are scaled, because a soft cap does not show while logits are small.
    """
    inputs: list[Tensor] = []

    def scale(module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits = torch.nn.functional.linear(arguments[0], module.weight).abs()
        scaled = arguments[0] * (LARGE_LOGIT / max(float(logits.max()), 1e-9))
        inputs[:] = [arguments[0], scaled]
        return (scaled, *arguments[1:])

    handle = unwrap_peft(model).get_output_embeddings().register_forward_pre_hook(scale)
    try:
        scaled, _ = unpadded_logits(model, [text])
    finally:
        handle.remove()
    if not inputs:
        return None, "its logits do not come from its output embeddings"
    rows = slice(-len(text.token_ids) - 1, -1)
    logits, products = (torch.nn.functional.linear(states, *head).flatten(0, -2)[rows] for states in inputs)
    if products.shape != scaled.shape or not float((scaled - products).abs().max()) <= probe_tolerance(scaled):
        return None, "its logits are not a product with its head's weight"
    return logits, ""


def _mismatch(compute: Callable[[], Tensor], expected: Tensor) -> str:
    """Return why a layout does not work for a model, or "" if it does."""
    try:
        logits = compute()
    except UnsupportedAttention as error:
        return str(error)
    except Exception as error:  # an architecture may fail in any way; the next layout may work
        return f"its layers cannot run a packed sequence ({type(error).__name__}: {one_line(error)[:80]})"
    distance = float((logits - expected).abs().max())
    if distance <= probe_tolerance(expected):
        return ""
    return f"packing changes its logits by a relative {distance / max(float(expected.abs().max()), 1e-9):.1e}"
