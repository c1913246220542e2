"""Samples in progress: creation, random numbers, and assembly into groups of completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

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
        slots: slots of its tokens in the forward cache.
    """

    prompt: int
    index: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = "length"
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

    def decode(self, token_ids: Sequence[int]) -> str: ...


def start_rows(
    model: TextModel, prompts: Sequence[Prompt], samples_per_prompt: int, sampling: SamplingParams, seed: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[SampleRow]]:
    """Return the token ids of P prompts, and a row for each of their P*G samples.

    Raises:
        InputError: a prompt cannot be encoded, or does not fit into the model's positions with its completion.
    """
    encoded = [model.encode_prompt(prompt) for prompt in prompts]
    _check_lengths(model, prompts, encoded, sampling.max_new_tokens)
    streams = random_streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens)
    return encoded, [SampleRow(*divmod(index, samples_per_prompt), uniforms) for index, uniforms in enumerate(streams)]


def _check_lengths(
    model: TextModel, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raise InputError if a text could exceed the model's positions."""
    positions = model.max_positions
    longest, index = max((len(ids), index) for index, ids in enumerate(encoded))
    if positions is not None and longest + max_new_tokens > positions:
        raise InputError(
            f"prompt '{prompts[index].id}' has {longest} tokens; with {max_new_tokens} new ones it does not fit into "
            f"the model's {positions} positions: lower sampling.max_new_tokens or give a shorter prompt"
        )


def collect_groups(
    model: TextModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[int, ...]],
    rows: Sequence[SampleRow],
    version: int,
    *,
    with_end: bool = False,
) -> list[Group]:
    """Return finished rows as groups, in the order of the prompts.

    Args:
        with_end: whether the end token is part of the text (it may be a character).
    """
    completions: list[list[Completion]] = [[] for _ in prompts]
    for row in rows:
        text = row.tokens[:-1] if row.reason == "stop" and not with_end else row.tokens
        completions[row.prompt].append(
            Completion(
                prompts[row.prompt], encoded[row.prompt], tuple(row.tokens), model.decode(text),
                tuple(row.logprobs), row.reason, version, row.index,
            )
        )  # fmt: skip
    return [Group(prompt, tuple(done)) for prompt, done in zip(prompts, completions, strict=True)]
