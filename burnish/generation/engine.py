"""The sampling engine: continuous batching over a cache that shares each prompt among its samples.

A prompt is run once for its whole group; its samples enter as rows of the batch and leave it when they end, and another
sample takes the place at once. The head sees live rows only. Rows have random numbers of their own, so a sample does not
depend on who shares its batch, beyond rounding.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from burnish.generation.equal_length import EqualLengthSampler, Row, begun, grouped
from burnish.generation.kv_cache import SharedPrefixCache
from burnish.generation.repacked_model import RepackedModel
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.attention import UnsupportedAttention, use_attention
from burnish.policies.kernels.packing import get_backbone, packed_states
from burnish.policies.sampling_distribution import draw_tokens
from burnish.protocols import Sampler
from burnish.types import Completion, Group, Prompt, SamplingParams

ROWS = 64
"""Samples in flight. More rows make the products faster, and each row's keys and values take memory."""

PREFILL_TOKENS = 2048
"""Tokens of prompts run at once, unless one prompt is longer."""


def make_sampler(language_model: CausalModel, *, rows: int = ROWS, dtype: torch.dtype | None = None) -> Sampler:
    """The engine where the model's layers take packed rows, else a sampler that asks nothing of an architecture."""
    if language_model.layout is packed_states:
        return Engine(language_model, rows=rows, dtype=dtype)
    return EqualLengthSampler(language_model, rows=rows)


class Engine:
    """Samples with the weights that the trainer trains.

    Args:
        language_model: whose layout is ``packed``.
        rows: samples in flight.
        dtype: of the products with weights while sampling; None is the model's own.
    """

    def __init__(self, language_model: CausalModel, *, rows: int = ROWS, dtype: torch.dtype | None = None) -> None:
        self.language_model = language_model
        self.rows = rows
        self._copy = RepackedModel(language_model.model, dtype)
        self._plain = EqualLengthSampler(language_model, rows=rows)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        """P groups of G completions.

        Raises:
            InputError: a prompt and its completion would not fit into the model's positions.
        """
        if not prompts:
            return []
        encoded, rows = begun(self.language_model, prompts, samples_per_prompt, sampling, seed)
        recorded = self.language_model.recorded
        try:
            with self._copy.ready(recorded) as model:
                rollout = _Rollout(self, model, encoded, rows, sampling)
                rollout.run()
        except UnsupportedAttention:  # these texts are longer than the window that its attention sees
            return self._plain.sample(
                prompts, samples_per_prompt=samples_per_prompt, sampling=sampling, seed=seed,
                policy_version=policy_version,
            )  # fmt: skip
        groups = grouped(self.language_model, prompts, encoded, rows, policy_version)
        if recorded is not None:
            rollout.note([completion for group in groups for completion in group.completions], rows)
        return groups


class _Rollout:
    """One call's work: what waits, what is in flight, and the cache between them."""

    def __init__(
        self,
        engine: Engine,
        model: Any,
        encoded: Sequence[tuple[int, ...]],
        rows: Sequence[Row],
        sampling: SamplingParams,
    ) -> None:
        self.model, self.encoded, self.sampling = model, encoded, sampling
        self.ends = engine.language_model.end_ids
        self.waiting = deque(rows)
        self.left = Counter(row.prompt for row in rows)
        self.live: list[Row] = []
        self.held: list[int] = []
        """Which prompt each group of the cache is."""
        room = min(engine.rows, len(rows))
        longest = max(map(len, encoded))
        self.room = room
        self.last: dict[int, Tensor] = {}
        """The last state [1, d] of each held prompt: the next of its samples begins there."""
        self.recorded = engine.language_model.recorded
        if self.recorded is not None:
            self.recorded.reserve(sum(map(len, encoded)) + len(rows) * (sampling.max_new_tokens - 1))
        self.recorded_prompts: dict[int, range] = {}
        self.cache = SharedPrefixCache(min(room, len(encoded)), room, longest, sampling.max_new_tokens, model.device)

    def run(self) -> None:
        with use_attention(self.model, self.cache, nullcontext):
            while self.waiting or self.live:
                while self.waiting and len(self.live) < self.room:
                    self._admit()
                if self.live:
                    self._decode()

    def note(self, completions: Sequence[Completion], rows: Sequence[Row]) -> None:
        """Tells the record where each completion's results are, if all of them are there."""
        if self.recorded is None:
            return
        for completion, row in zip(completions, rows, strict=True):
            if row.prompt in self.recorded_prompts and len(row.places) == len(row.tokens) - 1:
                self.recorded.note(completion, self.recorded_prompts[row.prompt], row.places)

    def _admit(self) -> None:
        """Fills the free places, and runs the prompts that are not held yet; each new row gets its first token."""
        entering: list[Row] = []
        new: list[int] = []
        while self.waiting and len(self.live) + len(entering) < self.room:
            prompt = self.waiting[0].prompt
            if prompt not in self.held and prompt not in new:
                if new and sum(len(self.encoded[other]) for other in [*new, prompt]) > PREFILL_TOKENS:
                    break
                new.append(prompt)
            entering.append(self.waiting.popleft())
        self._prefill(new)
        logits = self._logits(torch.cat([self.last[row.prompt] for row in entering]))
        for row in entering:
            self.live.append(row)
            self.cache.add_row(self.held.index(row.prompt))
        self._draw(logits, first=len(self.live) - len(entering))

    def _prefill(self, new: Sequence[int]) -> None:
        """Runs prompts that samples are waiting to continue."""
        if not new:
            return
        lengths = [len(self.encoded[prompt]) for prompt in new]
        self.cache.prefill(lengths)
        places = None if self.recorded is None else self.recorded.claim(sum(lengths))
        if places is not None:
            for prompt, stop, length in zip(new, accumulate(lengths), lengths, strict=True):
                self.recorded_prompts[prompt] = places[stop - length : stop]
        states = self._run(
            [token for prompt in new for token in self.encoded[prompt]],
            [place for length in lengths for place in range(length)],
        )
        self.held += new
        last = torch.tensor(lengths, device=states.device).cumsum(0) - 1
        self.last.update(zip(new, states[last].unsqueeze(1), strict=True))

    def _decode(self) -> None:
        """One more token of every live row."""
        cache = self.cache
        cache.decode()
        recorded = None if self.recorded is None else self.recorded.claim(len(self.live))
        if recorded is not None:
            for row, place in zip(self.live, recorded, strict=True):
                row.places.append(place)
        places = [
            cache.prompt_lengths[group] + length for group, length in zip(cache.group_of, cache.lengths, strict=True)
        ]
        states = self._run([row.tokens[-1] for row in self.live], places)
        cache.decoded()
        self._draw(self._logits(states), first=0)

    def _run(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """The last layer's states [T, d] of a packed row."""
        device = self.model.device
        found: Tensor = get_backbone(self.model)(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([places], device=device),
            use_cache=False,
        )[0][0]
        return found

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(states)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _draw(self, logits: Tensor, *, first: int) -> None:
        """Gives the live rows from ``first`` on their next token; those that end leave."""
        rows = self.live[first:]
        uniforms = torch.tensor([row.stream[len(row.tokens)] for row in rows], device=logits.device)
        tokens, logprobs = draw_tokens(logits, uniforms, self.sampling)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.take(token, logprob, self.ends)
        for place in reversed(range(first, len(self.live))):
            row = self.live[place]
            if row.reason == "stop" or len(row.tokens) == self.sampling.max_new_tokens:
                self._leave(place)

    def _leave(self, place: int) -> None:
        row, last = self.live[place], self.live.pop()
        if row is not last:
            self.live[place] = last
        self.cache.drop_row(place)
        self.left[row.prompt] -= 1
        if self.left[row.prompt] == 0:
            group, moved = self.held.index(row.prompt), self.held.pop()
            if moved != row.prompt:
                self.held[group] = moved
            self.cache.drop_group(group)
            del self.last[row.prompt]
