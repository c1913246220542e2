"""Samples in progress, and the frame of all samplers: random numbers, and assembly into groups of completions."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from burnish.errors import InputError
from burnish.generation.streaming import UNFINISHED, TextStream
from burnish.policies.sampling_distribution import draw_tokens, early_ends, random_stream, random_streams
from burnish.types import Completion, FinishReason, Group, Prompt, SamplingParams

LONGEST = sys.maxsize
BLURRED = 8
"""Characters at the start of a text that may be decoded wrongly if the tokens before them are missing."""


@dataclass(slots=True)
class SampleRow:
    """One sample in progress.

    Attributes:
        prompt: index of its prompt.
        index: index among the prompt's samples.
        uniforms: [max_new_tokens], a random number in [0, 1) for each token.
        tokens: the tokens so far.
        logprobs: their log-probabilities, nats.
        log_masses: as ``Completion.sampler_log_masses``.
        reason: "stop" after an end token or a stop text, else "length".
        text: the text, cut at a stop text; None if there is none.
        begins: whether its prompt is empty.
        before: how many of its tokens are there already, and are read with the prompt.
        prompt_slots, slots: slots of its prompt and of its tokens in the forward cache.
    """

    prompt: int
    index: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    log_masses: list[float] = field(default_factory=list)
    reason: FinishReason = "length"
    text: str | None = None
    begins: bool = False
    before: int = 0
    prompt_slots: range | None = None
    slots: list[int] = field(default_factory=list)

    def append(self, token: int, logprob: float, ends: frozenset[int]) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in ends:
            self.reason = "stop"


@dataclass(slots=True, kw_only=True)
class StreamedRow(SampleRow):
    """Sample whose text is passed on while it is drawn."""

    stream: TextStream

    def append(self, *args: Any, **options: Any) -> None:
        SampleRow.append(self, *args, **options)  # super() does not work in a dataclass with slots
        if self.reason == "length":
            self.stream.update(self.tokens)


def unfinished(completion: Completion, sampling: SamplingParams) -> bool:
    """Return whether a completion was left before its end."""
    return completion.finish_reason == "length" and len(completion.token_ids) < sampling.max_new_tokens


def _begins(prompt: Prompt) -> bool:
    return not (prompt.text or prompt.messages)


class TextModel(Protocol):
    """The part of a model that a sampler needs besides its logits."""

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens of a text, prompt and completion together; None if there is no limit."""
        ...

    def stop_ids(self, sampling: SamplingParams) -> frozenset[int]:
        """Return the tokens that end a sampled text."""
        ...

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]: ...

    def decode(self, token_ids: Sequence[int], *, begins: bool = False) -> str:
        """Return the text of a completion; ``begins``: of an empty prompt."""
        ...


class Drawer:
    """Draws the next token of each row, and finishes the rows that it ends."""

    def __init__(self, text_model: TextModel, sampling: SamplingParams) -> None:
        self.text_model, self.sampling = text_model, sampling
        self.ends = text_model.stop_ids(sampling)

    def __call__(self, rows: Sequence[SampleRow], logits: Tensor, lagged: Tensor | None = None) -> Tensor:
        """Draw a token for each row, append it to the rows that are not finished, and return all tokens [N].

        Args:
            logits: [N, V], at least float32. Overwritten.
            lagged: [N, V], logits of the lagged policy, if the sampling parameters need them.
        """
        sampling, device = self.sampling, logits.device
        uniforms = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], dtype=torch.float64, device=device)
        early = early_ends([[len(row.tokens)] for row in rows], self.ends, sampling, device)
        tokens, logprobs, log_masses = draw_tokens(logits, uniforms, sampling, lagged, early)
        live = [row.reason == "length" for row in rows]
        if log_masses is not None:
            for row, log_mass in zip(compress(rows, live), compress(log_masses.tolist(), live), strict=True):
                row.log_masses.append(log_mass)
        for row, token, logprob in compress(zip(rows, tokens.tolist(), logprobs.tolist(), strict=True), live):
            self.accept(row, token, logprob)
        return tokens

    def accept(self, row: SampleRow, token: int, logprob: float) -> None:
        """Append a token to a row that is not finished, and finish the row if the token ends it."""
        row.append(token, logprob, self.ends)
        if self.sampling.stop and row.reason == "length":
            self._stop(row)

    def _stop(self, row: SampleRow) -> None:
        """Finish a row whose last token completes a stop text, as if the text had been written character by character."""
        sampling, decode = self.sampling, self.text_model.decode
        if len(row.tokens) <= sampling.min_new_tokens or not self._in_recent_text(row.tokens):
            return
        text = decode(row.tokens, begins=row.begins)
        early = ""
        if sampling.min_new_tokens:
            early = decode(row.tokens[: sampling.min_new_tokens], begins=row.begins).rstrip(UNFINISHED)
        spans = []
        for stop in sampling.stop:
            start = text.find(stop, max(0, len(early) - len(stop) + 1))
            if start >= 0:
                spans.append((start + len(stop), start))
        if spans:
            end, start = min(spans)
            row.reason, row.text = "stop", text[: end if sampling.keep_stop else start]

    def _in_recent_text(self, tokens: Sequence[int]) -> bool:
        """Return whether a stop text may end in the last token; reads no more tokens than it needs to."""
        decode = self.text_model.decode
        needed = max(map(len, self.sampling.stop)) + BLURRED
        count = needed
        while count < len(tokens) and len(decode(tokens[-count:-1])) < needed:
            count *= 2
        recent = decode(tokens[-count:])
        return any(stop in recent for stop in self.sampling.stop)


class RowSampler(ABC):
    """Sampler that draws the tokens of all samples in ``fill``.

    Args:
        text_model: encodes the prompts and decodes the completions.
        with_end: whether the end token is part of the text (it may be a character).
    """

    def __init__(self, text_model: TextModel, *, with_end: bool = False) -> None:
        self.text_model = text_model
        self._with_end = with_end

    @abstractmethod
    def fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams) -> None:
        """Draw the tokens of all rows, given the token ids of the prompts."""

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
        on_text: Callable[[str], None] | None = None,
        limit: int | None = None,
    ) -> list[Group]:
        """Return P groups of G completions.

        Args:
            limit: tokens after which a text is left unfinished, for ``extend``; None draws all of it.
            on_text: for a single sample; called after each token with the text that is new, which may be empty.

        Raises:
            InputError: a prompt cannot be encoded, or does not fit into the model's positions with its completion.
        """
        if not prompts:
            return []
        encoded = [self.text_model.encode_prompt(prompt) for prompt in prompts]
        self._check_lengths(prompts, encoded, sampling.max_new_tokens)
        streams = random_streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens)
        rows = [SampleRow(*divmod(index, samples_per_prompt), uniforms) for index, uniforms in enumerate(streams)]
        for row in rows:
            row.begins = _begins(prompts[row.prompt])
        stream = None
        if on_text is not None:
            (row,) = rows
            stream = TextStream(partial(self.text_model.decode, begins=row.begins), on_text, sampling.stop)
            rows = [StreamedRow(row.prompt, row.index, row.uniforms, begins=row.begins, stream=stream)]
        self.fill(encoded, rows, replace(sampling, max_new_tokens=min(limit or LONGEST, sampling.max_new_tokens)))
        completions = [
            self._completion(prompts[row.prompt], encoded[row.prompt], row, policy_version, sampling) for row in rows
        ]
        if stream is not None:
            stream.finish(completions[0].text)
        return [
            Group(prompt, tuple(completions[index * samples_per_prompt : (index + 1) * samples_per_prompt]))
            for index, prompt in enumerate(prompts)
        ]

    @torch.no_grad()
    def extend(
        self,
        completions: Sequence[Completion],
        *,
        numbers: Sequence[int],
        sampling: SamplingParams,
        seed: Sequence[int],
        limit: int | None = None,
    ) -> list[Completion]:
        """Return unfinished completions with further tokens, drawn by the weights of this moment.

        A text gets the random numbers that it would have got without an interruption. Each one is read again, its prompt
        too: samples of one prompt go on differently.

        Args:
            numbers: of each completion, as in ``random_stream``.
            limit: as in ``sample``.
        """
        rows = []
        for place, (one, number) in enumerate(zip(completions, numbers, strict=True)):
            row = SampleRow(place, one.index, random_stream(one.prompt, number, seed, sampling.max_new_tokens))
            row.tokens, row.logprobs = list(one.token_ids), list(one.sampler_logprobs)
            row.log_masses, row.before = list(one.sampler_log_masses), len(one.token_ids)
            row.begins = _begins(one.prompt)
            rows.append(row)
        for before in sorted({row.before for row in rows}):
            some = [row for row in rows if row.before == before]
            encoded = [completions[row.prompt].prompt_ids + completions[row.prompt].token_ids for row in some]
            for place, row in enumerate(some):
                row.prompt = place
            left = min(limit or LONGEST, sampling.max_new_tokens - before)
            self.fill(encoded, some, replace(sampling, max_new_tokens=left))
        return [
            self._completion(one.prompt, one.prompt_ids, row, one.policy_version, sampling)
            for one, row in zip(completions, rows, strict=True)
        ]

    def _check_lengths(self, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        positions = self.text_model.max_positions
        longest, index = max((len(ids), index) for index, ids in enumerate(encoded))
        if positions is not None and longest + max_new_tokens > positions:
            raise InputError(
                f"prompt '{prompts[index].id}' has {longest} tokens; with {max_new_tokens} new ones it does not fit "
                f"into the model's {positions} positions: lower sampling.max_new_tokens or give a shorter prompt"
            )

    def _completion(
        self, prompt: Prompt, prompt_ids: tuple[int, ...], row: SampleRow, version: int, sampling: SamplingParams
    ) -> Completion:
        text = row.text
        if text is None:
            kept = sampling.keep_stop if row.tokens[-1] in sampling.stop_token_ids else self._with_end
            tokens = row.tokens[:-1] if row.reason == "stop" and not kept else row.tokens
            text = self.text_model.decode(tokens, begins=row.begins)
        return Completion(
            prompt, prompt_ids, tuple(row.tokens), text, tuple(row.logprobs), row.reason, version, row.index,
            tuple(row.log_masses),
        )  # fmt: skip
