"""Sampling for every architecture, with its own cache or without one.

Prompts of equal length are run together, so nothing is padded, and recurrent and state-space models see exactly the
tokens of the text. This is slower than the engine: prompts are computed once per sample, and a finished sample stays in
its batch until the whole batch is finished.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.errors import InputError
from burnish.generation.rows import Drawer, RowSampler, SampleRow
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.mixed_precision import sampling_precision
from burnish.policies.kernels.packing import logits_to_keep_option, unwrap_peft
from burnish.types import SamplingParams

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of the cache in model outputs and inputs, by architecture."""


class EqualLengthSampler(RowSampler):
    """Sampler with the weights of any causal language model, in batches of ``rows`` samples.

    Args:
        use_cache: whether to use the model's own cache; without, each token runs the whole text again.
        positions: whether to tell the model the position of each token; with a cache, some models count wrongly.
    """

    def __init__(
        self, language_model: CausalModel, *, rows: int, use_cache: bool = True, positions: bool = False
    ) -> None:
        super().__init__(language_model)
        self.language_model = language_model
        self.rows = rows
        self.use_cache, self.positions = use_cache, positions

    def fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams) -> None:
        by_length: dict[int, list[SampleRow]] = {}
        for row in rows:
            by_length.setdefault(len(encoded[row.prompt]), []).append(row)
        for same in by_length.values():
            for start in range(0, len(same), self.rows):
                self._sample_batch(encoded, same[start : start + self.rows], sampling)

    def _sample_batch(
        self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams
    ) -> None:
        draw = Drawer(self.language_model, sampling)
        ids = torch.tensor([encoded[row.prompt] for row in rows], device=self.language_model.device)
        past, cache = 0, None
        for _ in range(sampling.max_new_tokens):
            logits, cache = self._forward(ids, past, cache)
            tokens = draw(rows, logits)
            if all(row.reason == "stop" for row in rows):
                return
            past += ids.shape[1] if self.use_cache else 0
            ids = tokens[:, None] if self.use_cache else torch.cat([ids, tokens[:, None]], 1)

    def _forward(self, ids: Tensor, past: int, cache: Any) -> tuple[Tensor, Any]:
        """Return the last logits [B, V] of the tokens after the first ``past``, and the cache with its name."""
        model = self.language_model.model
        inputs: dict[str, Any] = {} if cache is None else {cache[0]: cache[1]}
        if self.positions:
            inputs["position_ids"] = torch.arange(past, past + ids.shape[1], device=ids.device).expand(ids.shape)
        with sampling_precision(model):
            output = model(input_ids=ids, use_cache=self.use_cache, **inputs, **logits_to_keep_option(model, 1))
        logits = self.language_model.token_logits(output.logits[:, -1])
        if not self.use_cache:
            return logits, None
        for name in CACHE_NAMES:
            if output.get(name) is not None:
                return logits, (name, output[name])
        raise InputError(
            f"{unwrap_peft(model).config.model_type} models return no cache under a name that burnish knows "
            f"({', '.join(CACHE_NAMES)})"
        )


def takes_positions(model: Any) -> bool:
    """Return whether a model's forward pass has position ids."""
    return "position_ids" in inspect.signature(unwrap_peft(model).forward).parameters
