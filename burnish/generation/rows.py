"""Samples in progress, and the frame of all samplers: random numbers, and assembly into groups of completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from burnish.errors import InputError
from burnish.policies.sampling_distribution import random_streams
from burnish.types import Completion, FinishReason, Group, Prompt, SamplingParams


@dataclass(slots=True)
class SampleRow:
    """One sample in progress.

    Attributes:
        prompt: index of its prompt.
        index: index among the prompt's samples.
        uniforms: [max_new_tokens], a random number in [0, 1) for each token.
        tokens: the tokens so far.
        logprobs: their log-probabilities, nats.
        reason: "stop" after an end token, else "length".
        prompt_slots, slots: slots of its prompt and of its tokens in the forward cache.
    """

    prompt: int
    index: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = "length"
    prompt_slots: range | None = None
    slots: list[int] = field(default_factory=list)

    def append(self, token: int, logprob: float, ends: frozenset[int]) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in ends:
            self.reason = "stop"


class TextModel(Protocol):
    """The part of a model that a sampler needs besides its logits."""

    @property
    def max_positions(self) -> int | None:
        """Maximum number of tokens of a text, prompt and completion together; None if there is no limit."""
        ...

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]: ...

    def decode(self, token_ids: Sequence[int], *, begins: bool = False) -> str:
        """Return the text of a completion; ``begins``: of an empty prompt."""
        ...


class RowSampler(ABC):
    """Sampler that draws the tokens of all samples in ``fill``.

    Args:
        text_model: encodes the prompts and decodes the completions.
        with_end: whether the end token is part of the text (it may be a character).
    """

    def __init__(self, text_model: TextModel, *, with_end: bool = False) -> None:
        self._text_model = text_model
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
    ) -> list[Group]:
        """Return P groups of G completions.

        Raises:
            InputError: a prompt cannot be encoded, or does not fit into the model's positions with its completion.
        """
        if not prompts:
            return []
        encoded = [self._text_model.encode_prompt(prompt) for prompt in prompts]
        self._check_lengths(prompts, encoded, sampling.max_new_tokens)
        streams = random_streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens)
        rows = [SampleRow(*divmod(index, samples_per_prompt), uniforms) for index, uniforms in enumerate(streams)]
        self.fill(encoded, rows, sampling)
        completions = [self._completion(prompts[row.prompt], encoded[row.prompt], row, policy_version) for row in rows]
        return [
            Group(prompt, tuple(completions[index * samples_per_prompt : (index + 1) * samples_per_prompt]))
            for index, prompt in enumerate(prompts)
        ]

    def _check_lengths(self, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        positions = self._text_model.max_positions
        longest, index = max((len(ids), index) for index, ids in enumerate(encoded))
        if positions is not None and longest + max_new_tokens > positions:
            raise InputError(
                f"prompt '{prompts[index].id}' has {longest} tokens; with {max_new_tokens} new ones it does not fit "
                f"into the model's {positions} positions: lower sampling.max_new_tokens or give a shorter prompt"
            )

    def _completion(self, prompt: Prompt, prompt_ids: tuple[int, ...], row: SampleRow, version: int) -> Completion:
        text = row.tokens[:-1] if row.reason == "stop" and not self._with_end else row.tokens
        options = {} if prompt.text or prompt.messages else {"begins": True}
        decoded = self._text_model.decode(text, **options)
        return Completion(
            prompt, prompt_ids, tuple(row.tokens), decoded, tuple(row.logprobs), row.reason, version, row.index,
        )  # fmt: skip
