"""Choice of a model's sampler by comparison of what it records with a plain forward pass of each text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from burnish.errors import InputError, one_line
from burnish.generation.equal_length import EqualLengthSampler, takes_positions
from burnish.generation.rows import RowSampler, SampleRow
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.layout_probe import SHORT, probe_texts
from burnish.policies.kernels.mixed_precision import compute_dtype
from burnish.policies.kernels.packing import unwrap_peft
from burnish.types import Completion, SamplingParams

ENGINE_TOKENS = 3
"""Tokens per sample of the engine; few, because large models use it."""
SAMPLES = 2
"""Samples per probe text."""


TOLERANCE = {torch.float64: 1e-7, torch.float32: 5e-4}
"""Differences by rounding, nats, of probable and improbable tokens; a wrong cache is off by much more."""
CACHE_FAULTS = {"zamba2": "leaves out the limit of its time step"}
"""Types whose update by one token differs from their forward pass only for some inputs (transformers 5.24)."""
Candidate = tuple[str, Callable[[], RowSampler]]
"""A sampler's name, and what makes it."""


def equal_length_samplers(language_model: CausalModel, rows: int) -> Iterator[Candidate]:
    """Yield samplers for any model, the fastest first."""
    yield "cache", lambda: EqualLengthSampler(language_model, rows=rows)
    if takes_positions(language_model.model):
        yield "cache with positions", lambda: EqualLengthSampler(language_model, rows=rows, positions=True)
    yield "no cache", lambda: EqualLengthSampler(language_model, rows=rows, use_cache=False)


@torch.no_grad()
def choose_sampler(
    language_model: CausalModel, candidates: Iterable[Candidate], dtype: torch.dtype | None = None
) -> tuple[str, RowSampler, str]:
    """Return the first exact sampler with its name, and why it is not the first of all ("" if it is).

    Args:
        dtype: of the matrix products while sampling; None is the model's own.

    Raises:
        InputError: no sampler is exact.
    """
    dtype = dtype or compute_dtype(language_model.model) or language_model.model.dtype
    cache, language_model.forward_cache = language_model.forward_cache, None
    kind, reason = unwrap_peft(language_model.model).config.model_type, ""
    try:
        for name, make in candidates:
            sampler = make()
            with _effective_adapter(language_model.model):
                mismatch = CACHE_FAULTS.get(kind, "") if name.startswith("cache") else ""
                count = ENGINE_TOKENS if name.endswith("engine") else 12
                mismatch = mismatch or _mismatch(language_model, sampler, dtype, count)
            if not mismatch:
                return name, sampler, reason
            reason = reason or f"sampling with its {name.removesuffix(' with positions')} {mismatch}"
    finally:
        language_model.forward_cache = cache
    raise InputError(
        f"no sampler gives this {kind} model's own log-probabilities: {reason}. Its logits depend on more than the "
        "tokens before them, so choose another model"
    )


@contextmanager
def _effective_adapter(model: Any) -> Iterator[None]:
    """Give a new LoRA adapter an effect, which it has only after training, and take it away again."""
    changed = [
        (parameter, parameter.clone())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_B" in name and not parameter.any()
    ]
    generator = torch.Generator().manual_seed(0)
    for parameter, _ in changed:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    try:
        yield
    finally:
        for parameter, before in changed:
            parameter.copy_(before)


def _mismatch(language_model: CausalModel, sampler: RowSampler, dtype: torch.dtype, count: int) -> str:
    """Return why a sampler does not work for a model, or "" if it does."""
    try:
        distance = largest_gap(language_model, sampler, count)
    except Exception as error:  # an architecture may fail in any way; the next sampler may work
        return f"fails ({type(error).__name__}: {one_line(error)[:80]})"
    return "" if distance <= TOLERANCE.get(dtype, 0.5) else f"changes its log-probabilities by {distance:.1e} nats"


def largest_gap(language_model: CausalModel, sampler: RowSampler, count: int) -> float:
    """Return the largest distance, nats, of what a sampler records from the model's own log-probabilities.

    Of ``SAMPLES`` samples with ``count`` tokens for each of two probe texts. Raises what the sampler raises.
    """
    text = probe_texts(language_model.model)[0]
    tokens = text.prompt_ids + text.token_ids
    # The engine hands texts that are longer than a window to another sampler.
    encoded = [tokens[:5], tokens[2 : SHORT if count == ENGINE_TOKENS else None]]
    uniforms = np.random.default_rng(0).random((len(encoded) * SAMPLES, count))
    rows = [SampleRow(*divmod(index, SAMPLES), numbers) for index, numbers in enumerate(uniforms)]
    sampler.fill(encoded, rows, SamplingParams(count))
    samples = [Completion(text.prompt, encoded[row.prompt], tuple(row.tokens), "", (), "length") for row in rows]
    expected = language_model.token_logprobs(samples)
    recorded = torch.tensor([logprob for row in rows for logprob in row.logprobs], dtype=torch.float64)
    return float((recorded - expected).abs().max())
