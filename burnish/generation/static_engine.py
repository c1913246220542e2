"""Sampling engine for a GPU: steps of fixed shape, captured as CUDA graphs, and no look at a result between tokens.

The host admits samples to free rows and reads what was drawn once in ``CHUNK`` tokens. A row whose text has ended goes
on until then, and what it draws is dropped. A prompt is run once for all of its samples that enter together.

On another device the same steps run one by one, which is how they are tested on a CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.generation.repacked_model import RepackedModel
from burnish.generation.rows import Drawer, RowSampler, SampleRow
from burnish.generation.sampler_probe import choose_sampler, equal_length_samplers
from burnish.generation.static_cache import StaticCache
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.attention import UnsupportedAttention, use_attention
from burnish.policies.kernels.packing import get_backbone
from burnish.policies.sampling_distribution import EarlyEnds, draw_tokens, is_truncated
from burnish.types import SamplingParams

ROWS = 256
"""Samples in flight at most."""
CHUNK = 16
"""Tokens that are drawn between two looks of the host."""
WIDTH = 256
"""Places of the cache that a step reads are a multiple of it: a graph is captured for each."""
PREFILL_TOKENS = 8192
"""Prompt tokens per prefill pass; a single longer prompt is allowed."""
WARM_UP = 2
"""Runs of a step before it is captured, which let libraries choose and allocate."""


class StaticEngine(RowSampler):
    """Sampler with the weights that are trained. Its buffers and graphs stay for the next call of the same shape.

    Args:
        language_model: a model that runs packed sequences.
        rows: samples in flight at most.
    """

    def __init__(self, language_model: CausalModel, *, rows: int = ROWS) -> None:
        super().__init__(language_model)
        self.language_model, self.rows = language_model, rows
        self._repacked = RepackedModel(language_model.model)
        self._stepper: _Stepper | None = None

    def fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams) -> None:
        text = max(map(len, encoded)) + sampling.max_new_tokens
        while True:
            shape = _Shape(min(self.rows, len(rows)), _rounded(text + CHUNK), len(rows[0].uniforms), sampling)
            try:
                self._fill(encoded, rows, shape, text)
                return
            except UnsupportedAttention:  # a text exceeds the window: raised by the first pass, before a token is drawn
                self._fallback.fill(encoded, rows, sampling)
                return
            except torch.OutOfMemoryError:
                self._stepper = None
                if shape.rows == 1 or any(len(row.tokens) > row.before for row in rows):
                    raise
                self.rows = shape.rows // 2

    def _fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], shape: _Shape, text: int) -> None:
        with self._repacked.repacked() as model:
            if self._stepper is None or self._stepper.shape != shape:
                self._stepper = None  # its memory is free before the next one's is taken
                self._stepper = _Stepper(self.language_model, model, shape)
            self._stepper.cache.max_text_length = text
            _Rollout(self._stepper, encoded, rows).run()

    @cached_property
    def _fallback(self) -> RowSampler:
        return choose_sampler(self.language_model, equal_length_samplers(self.language_model, self.rows))[1]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the memory and the operations of a step depend on: rows, places of a row, random numbers, and parameters."""

    rows: int
    longest: int
    uniforms: int
    sampling: SamplingParams


class _Stepper:
    """One decoding step: its buffers, and its graph for each width that was needed."""

    def __init__(self, language_model: CausalModel, model: Any, shape: _Shape) -> None:
        self.language_model, self.model, self.shape = language_model, model, shape
        device, rows = model.device, shape.rows
        self.cache = StaticCache(rows, shape.longest, device)
        self.last = torch.zeros(rows, dtype=torch.long, device=device)
        """[B], the newest token of each row, which the cache does not have yet."""
        self.drawn = torch.zeros(rows, dtype=torch.long, device=device)
        """[B], the tokens of each row's answer so far."""
        self.uniforms = torch.zeros(rows, shape.uniforms, dtype=torch.float64, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        """[1], the place in the chunk of the token that is drawn next."""
        self.tokens = torch.zeros(rows, CHUNK, dtype=torch.long, device=device)
        self.numbers = torch.zeros(2, rows, CHUNK, dtype=torch.float64, device=device)
        """Log-probabilities and log masses of the chunk."""
        positions = language_model.max_positions
        self._most = shape.longest if positions is None else positions
        ends = language_model.stop_ids(shape.sampling)
        count = model.get_output_embeddings().weight.shape[0]
        self._ends = torch.tensor(sorted(one for one in ends if 0 <= one < count), dtype=torch.long, device=device)
        self._graphs: dict[int, Callable[[], None]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        with use_attention(self.model, self.cache, nullcontext):
            yield

    def run_chunk(self, width: int) -> None:
        """Draw ``CHUNK`` tokens for every row, reading so many places of the cache."""
        self.column.zero_()
        self.cache.width = width
        if width not in self._graphs:
            self._graphs[width] = self._captured() if self.model.device.type == "cuda" else self._step
        for _ in range(CHUNK):
            self._graphs[width]()

    def states(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return the last layer's states [T, d] of a packed sequence."""
        clamped = positions.clamp(max=self._most - 1)  # of rows that nobody reads any more
        backbone = get_backbone(self.model)
        states: Tensor = backbone(input_ids=ids[None], position_ids=clamped[None], use_cache=False)[0][0]
        return states

    def logits(self, states: Tensor) -> Tensor:
        return self.language_model.token_logits(self.model.get_output_embeddings()(states))

    def _step(self) -> None:
        """Run the newest token of every row and draw the next, without a look at any number."""
        self.cache.decode()
        logits = self.logits(self.states(self.last, self.cache.filled))
        self.cache.advance()
        at = self.drawn.clamp(max=self.shape.uniforms - 1)[:, None]
        sampling, early = self.shape.sampling, None
        if sampling.min_new_tokens:
            early = EarlyEnds(self.drawn < sampling.min_new_tokens, self._ends, checked=True)
        tokens, logprobs, masses = draw_tokens(
            logits, self.uniforms.gather(1, at).squeeze(1), sampling, early=early, static=True
        )
        place = self.column.expand(len(tokens), 1)
        self.tokens.scatter_(1, place, tokens[:, None])
        self.numbers[0].scatter_(1, place, logprobs[:, None])
        if masses is not None:
            self.numbers[1].scatter_(1, place, masses[:, None])
        self.last.copy_(tokens)
        self.drawn.add_(1)
        self.column.add_(1)

    def _captured(self) -> Callable[[], None]:
        """Return the step as a CUDA graph. What warming up changes is put back."""
        state = (self.cache.filled, self.last, self.drawn, self.column)
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        for tensor, kept in zip(state, before, strict=True):
            tensor.copy_(kept)
        replay: Callable[[], None] = graph.replay
        return replay


class _Rollout:
    """State of one ``fill`` call: waiting samples, and the sample of each row in flight."""

    def __init__(self, stepper: _Stepper, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow]) -> None:
        self.stepper, self.encoded = stepper, encoded
        self.sampling = stepper.shape.sampling
        self.draw = Drawer(stepper.language_model, self.sampling)
        self.waiting = deque(rows)
        self.live: dict[int, SampleRow] = {}
        """Row of the cache -> its sample."""
        self.free = list(range(stepper.shape.rows))[::-1]

    def run(self) -> None:
        with self.stepper.running():
            while self.waiting or self.live:
                while self.waiting and self.free:
                    self._admit()
                if self.live:
                    self._advance()

    def _admit(self) -> None:
        """Give free rows to waiting samples, fill them with their prompts, and draw each one's first token."""
        entering: dict[int, list[int]] = {}
        tokens = 0
        while self.waiting and self.free:
            prompt = self.waiting[0].prompt
            if prompt not in entering:
                tokens += len(self.encoded[prompt])
                if entering and tokens > PREFILL_TOKENS:
                    break
            row = self.free.pop()
            self.live[row] = self.waiting.popleft()
            entering.setdefault(prompt, []).append(row)
        stepper, device = self.stepper, self.stepper.model.device
        lengths = [len(self.encoded[prompt]) for prompt in entering]
        stepper.cache.prefill(lengths, list(entering.values()))
        ids = torch.tensor([token for prompt in entering for token in self.encoded[prompt]], device=device)
        positions = torch.tensor([place for length in lengths for place in range(length)], device=device)
        states = stepper.states(ids, positions)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        counts = torch.tensor([len(rows) for rows in entering.values()], device=device)
        rows = [row for some in entering.values() for row in some]
        drawn = self.draw([self.live[row] for row in rows], stepper.logits(states[last].repeat_interleave(counts, 0)))
        self._enter(rows, drawn)
        for row in rows:
            self._leave_if_finished(row)

    def _enter(self, rows: Sequence[int], tokens: Tensor) -> None:
        """Tell the device about the samples of new rows, whose first tokens are drawn."""
        stepper, device = self.stepper, self.stepper.model.device
        chosen = torch.tensor(rows, device=device)
        samples = [self.live[row] for row in rows]
        stepper.last[chosen] = tokens
        stepper.drawn[chosen] = torch.tensor([len(one.tokens) for one in samples], device=device)
        stepper.cache.filled[chosen] = torch.tensor([len(self.encoded[one.prompt]) for one in samples], device=device)
        stepper.uniforms[chosen] = torch.from_numpy(np.stack([one.uniforms for one in samples])).to(device)

    def _advance(self) -> None:
        """Draw a chunk of tokens and give each row those that belong to its text."""
        stepper = self.stepper
        longest = max(len(self.encoded[one.prompt]) + len(one.tokens) - one.before for one in self.live.values())
        stepper.run_chunk(min(_rounded(longest + CHUNK), stepper.shape.longest))
        tokens, (logprobs, masses) = stepper.tokens.tolist(), stepper.numbers.tolist()
        truncated = is_truncated(self.sampling)
        for row in list(self.live):
            sample = self.live[row]
            for place in range(CHUNK):
                if self._finished(sample):
                    break
                if truncated:
                    sample.log_masses.append(masses[row][place])
                self.draw.accept(sample, tokens[row][place], logprobs[row][place])
            self._leave_if_finished(row)

    def _finished(self, sample: SampleRow) -> bool:
        return sample.reason == "stop" or len(sample.tokens) - sample.before == self.sampling.max_new_tokens

    def _leave_if_finished(self, row: int) -> None:
        if self._finished(self.live[row]):
            del self.live[row]
            self.free.append(row)


def _rounded(length: int) -> int:
    """Return the next multiple of ``WIDTH``."""
    return -(-length // WIDTH) * WIDTH
