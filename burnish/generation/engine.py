"""Sampling engine: continuous batching with a key-value cache that shares each prompt among its samples.

A prompt is run once for its whole group. Its samples are rows of the batch; a finished row leaves at once and a waiting
sample takes its place. Each sample has its own random numbers, so apart from rounding it does not depend on the rest of
the batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from burnish.generation.kv_cache import SharedPrefixCache
from burnish.generation.repacked_model import RepackedModel
from burnish.generation.rows import Drawer, RowSampler, SampleRow
from burnish.generation.sampler_probe import choose_sampler, equal_length_samplers
from burnish.generation.static_engine import StaticEngine
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.attention import UnsupportedAttention, use_attention
from burnish.policies.kernels.mixed_precision import compute_dtype
from burnish.policies.kernels.packing import get_backbone, packed_states
from burnish.types import Completion, Prompt, SamplingParams

ROWS = 64
"""Samples in flight. More rows make matrix products more efficient, but each needs memory for keys and values."""

PREFILL_TOKENS = 2048
"""Prompt tokens per prefill pass; a single longer prompt is allowed."""


def make_sampler(language_model: CausalModel, *, rows: int = ROWS, dtype: torch.dtype | None = None) -> RowSampler:
    """Return the fastest sampler that is exact for a model; samplers are compared once per model."""
    candidates = list(equal_length_samplers(language_model, rows))
    if language_model.layout is packed_states:
        candidates.insert(0, ("engine", lambda: Engine(language_model, rows=rows, dtype=dtype)))
        if language_model.device.type == "cuda" and dtype is None:
            candidates.insert(0, ("static engine", lambda: StaticEngine(language_model)))
    if dtype is None and (make := dict(candidates).get(language_model.sampler_kind)):
        return make()
    verdicts, products = language_model.verdicts, compute_dtype(language_model.model) or language_model.model.dtype
    if dtype is None and verdicts is not None:
        kind, reason = verdicts.sampler(products)
        if make := dict(candidates).get(kind):
            language_model.sampler_kind, language_model.sampler_reason = kind, reason
            return make()
    kind, sampler, reason = choose_sampler(language_model, candidates, dtype)
    language_model.sampler_kind, language_model.sampler_reason = kind, reason
    if dtype is None and verdicts is not None:
        verdicts.keep_sampler(products, kind, reason)
    return sampler


class Engine(RowSampler):
    """Sampler with shared prompts and continuous batching, with the weights that are trained.

    Args:
        language_model: a model that runs packed sequences.
        rows: samples in flight.
        dtype: of the matrix products while sampling; None is the model's own.
    """

    def __init__(self, language_model: CausalModel, *, rows: int = ROWS, dtype: torch.dtype | None = None) -> None:
        super().__init__(language_model)
        self.language_model = language_model
        self.rows = rows
        self._repacked = RepackedModel(language_model.model, dtype)

    def fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams) -> None:
        try:
            with self._repacked.repacked(self.language_model.forward_cache) as model:
                _Rollout(self, model, encoded, rows, sampling).run()
        except UnsupportedAttention:  # a text exceeds the window: raised by the first pass, before any token is drawn
            self._fallback.fill(encoded, rows, sampling)

    @cached_property
    def _fallback(self) -> RowSampler:
        return choose_sampler(self.language_model, equal_length_samplers(self.language_model, self.rows))[1]

    def _completion(
        self, prompt: Prompt, prompt_ids: tuple[int, ...], row: SampleRow, version: int, sampling: SamplingParams
    ) -> Completion:
        completion = super()._completion(prompt, prompt_ids, row, version, sampling)
        cache = self.language_model.forward_cache
        if cache is not None and row.prompt_slots is not None and len(row.slots) == len(row.tokens) - 1:
            cache.set_slots(completion, row.prompt_slots, row.slots)
        return completion


class _Rollout:
    """State of one ``fill`` call: waiting samples, samples in flight, and their cache."""

    def __init__(
        self,
        engine: Engine,
        model: Any,
        encoded: Sequence[tuple[int, ...]],
        rows: Sequence[SampleRow],
        sampling: SamplingParams,
    ) -> None:
        self.model, self.encoded, self.sampling = model, encoded, sampling
        self.draw = Drawer(engine.language_model, sampling)
        self.token_logits = engine.language_model.token_logits
        self.waiting = deque(rows)
        self.remaining = Counter(row.prompt for row in rows)
        self.live: list[SampleRow] = []
        self.cached_prompts: list[int] = []
        """The prompt of each group in the cache."""
        self.max_rows = min(engine.rows, len(rows))
        self.last_states: dict[int, Tensor] = {}
        """The last state [1, d] of each cached prompt, which predicts the first token of its samples."""
        self.forward_cache = engine.language_model.forward_cache
        if self.forward_cache is not None:
            self.forward_cache.reserve(sum(map(len, encoded)) + len(rows) * (sampling.max_new_tokens - 1))
        self.prompt_slots: dict[int, range] = {}
        groups, longest = min(self.max_rows, len(encoded)), max(map(len, encoded))
        self.cache = SharedPrefixCache(groups, self.max_rows, longest, sampling.max_new_tokens, model.device)

    def run(self) -> None:
        with use_attention(self.model, self.cache, nullcontext):
            while self.waiting or self.live:
                while self.waiting and len(self.live) < self.max_rows:
                    self._admit()
                if self.live:
                    self._decode()

    def _admit(self) -> None:
        """Fill free rows with waiting samples, prefill new prompts, and draw each new row's first token."""
        entering: list[SampleRow] = []
        new: list[int] = []
        while self.waiting and len(self.live) + len(entering) < self.max_rows:
            prompt = self.waiting[0].prompt
            if prompt not in self.cached_prompts and prompt not in new:
                if new and sum(len(self.encoded[other]) for other in [*new, prompt]) > PREFILL_TOKENS:
                    break
                new.append(prompt)
            entering.append(self.waiting.popleft())
        self._prefill(new)
        logits = self._logits(torch.cat([self.last_states[row.prompt] for row in entering]))
        for row in entering:
            row.prompt_slots = self.prompt_slots.get(row.prompt)
            self.live.append(row)
            self.cache.add_row(self.cached_prompts.index(row.prompt))
        self._draw(logits, first=len(self.live) - len(entering))

    def _prefill(self, new: Sequence[int]) -> None:
        """Run prompts and keep their keys, values and last states."""
        if not new:
            return
        lengths = [len(self.encoded[prompt]) for prompt in new]
        self.cache.prefill(lengths)
        slots = None if self.forward_cache is None else self.forward_cache.allocate(sum(lengths))
        if slots is not None:
            for prompt, stop, length in zip(new, accumulate(lengths), lengths, strict=True):
                self.prompt_slots[prompt] = slots[stop - length : stop]
        states = self._run(
            [token for prompt in new for token in self.encoded[prompt]],
            [position for length in lengths for position in range(length)],
        )
        self.cached_prompts += new
        last = torch.tensor(lengths, device=states.device).cumsum(0) - 1
        self.last_states.update(zip(new, states[last].unsqueeze(1), strict=True))

    def _decode(self) -> None:
        """Draw one more token for every row in flight."""
        self.cache.decode()
        slots = None if self.forward_cache is None else self.forward_cache.allocate(len(self.live))
        if slots is not None:
            for row, slot in zip(self.live, slots, strict=True):
                row.slots.append(slot)
        positions = [len(self.encoded[row.prompt]) + len(row.tokens) - row.before - 1 for row in self.live]
        states = self._run([row.tokens[-1] for row in self.live], positions)
        self.cache.advance()
        self._draw(self._logits(states), first=0)

    def _run(self, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return the last layer's states [T, d] of a packed sequence."""
        inputs = torch.tensor([[ids], [positions]], device=self.model.device)
        states: Tensor = get_backbone(self.model)(input_ids=inputs[0], position_ids=inputs[1], use_cache=False)[0][0]
        return states

    def _logits(self, states: Tensor) -> Tensor:
        return self.token_logits(self.model.get_output_embeddings()(states))

    def _draw(self, logits: Tensor, *, first: int) -> None:
        """Draw the next token of the rows in flight from ``first`` on, and remove those that finish."""
        self.draw(self.live[first:], logits)
        for index in reversed(range(first, len(self.live))):
            row = self.live[index]
            if row.reason == "stop" or len(row.tokens) - row.before == self.sampling.max_new_tokens:
                self._remove(index)

    def _remove(self, index: int) -> None:
        row, last = self.live[index], self.live.pop()
        if row is not last:
            self.live[index] = last
        self.cache.drop_row(index)
        self.remaining[row.prompt] -= 1
        if self.remaining[row.prompt] == 0:
            group, moved = self.cached_prompts.index(row.prompt), self.cached_prompts.pop()
            if moved != row.prompt:
                self.cached_prompts[group] = moved
            self.cache.drop_group(group)
            del self.last_states[row.prompt]
