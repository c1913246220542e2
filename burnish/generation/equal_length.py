"""Sampling that asks nothing of an architecture but that it can go on from the cache it returned itself.

Prompts of one length are run together, each repeated for its samples, so that nothing is ever padded: recurrent and
state-space models see the very tokens. Slower than the engine: prompts are computed once a sample, and a sample that is
done stays in the batch until all of it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from burnish.errors import InputError
from burnish.policies.causal_lm import CausalModel
from burnish.policies.kernels.packing import logits_to_keep_option, unwrap_peft
from burnish.policies.sampling_distribution import draw_tokens, random_streams
from burnish.types import Completion, FinishReason, Group, Prompt, SamplingParams


@dataclass(slots=True)
class Row:
    """One sample in the making."""

    prompt: int
    index: int
    stream: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = "length"
    places: list[int] = field(default_factory=list)
    """Where the results of its tokens are recorded."""

    def take(self, token: int, logprob: float, ends: frozenset[int]) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in ends:
            self.reason = "stop"


class EqualLengthSampler:
    """Samples with the model's own weights, which it shares with the trainer.

    Args:
        language_model: any.
        rows: samples in one batch.
    """

    def __init__(self, language_model: CausalModel, *, rows: int) -> None:
        self.language_model = language_model
        self.rows = rows

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
        by_length: dict[int, list[Row]] = {}
        for row in rows:
            by_length.setdefault(len(encoded[row.prompt]), []).append(row)
        for same in by_length.values():
            for start in range(0, len(same), self.rows):
                self._batch(encoded, same[start : start + self.rows], sampling)
        return grouped(self.language_model, prompts, encoded, rows, policy_version)

    def _batch(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[Row], sampling: SamplingParams) -> None:
        ends = self.language_model.end_ids
        device = self.language_model.device
        ids = torch.tensor([encoded[row.prompt] for row in rows], device=device)
        cache: Any = None
        for step in range(sampling.max_new_tokens):
            logits, cache = self._forward(ids, cache)
            uniforms = torch.tensor([row.stream[step] for row in rows], device=device)
            tokens, logprobs = draw_tokens(logits, uniforms, sampling)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                if row.reason == "length":
                    row.take(token, logprob, ends)
            if all(row.reason == "stop" for row in rows):
                return
            ids = tokens[:, None]

    def _forward(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """The last logits [B, V] and the cache, by whatever name the architecture calls it."""
        model = self.language_model.model
        given = {} if cache is None else {cache[0]: cache[1]}
        output = model(input_ids=ids, use_cache=True, **given, **logits_to_keep_option(model, 1))
        for name in CACHE_NAMES:
            if output.get(name) is not None:
                logits = output.logits[:, -1]
                return logits.to(torch.promote_types(logits.dtype, torch.float32)), (name, output[name])
        raise InputError(
            f"{unwrap_peft(model).config.model_type} models return no cache under a name that burnish knows "
            f"({', '.join(CACHE_NAMES)}), so it cannot sample from them"
        )


CACHE_NAMES = ("cache", "past_key_values", "cache_params")


class Reader(Protocol):
    """What a sampler asks of a model besides its logits."""

    @property
    def max_positions(self) -> int | None:
        """Tokens that fit into one text, prompt and completion together; None where the model sets no bound."""
        ...

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


def begun(
    model: Reader, prompts: Sequence[Prompt], samples_per_prompt: int, sampling: SamplingParams, seed: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[Row]]:
    """The token ids of P prompts, and a row for each of their P*G samples, with random numbers of its own.

    Raises:
        InputError: a prompt cannot be encoded, or does not fit into the model's positions with its completion.
    """
    encoded = [model.encode_prompt(prompt) for prompt in prompts]
    _check_lengths(model, prompts, encoded, sampling.max_new_tokens)
    numbers = random_streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens)
    return encoded, [Row(*divmod(place, samples_per_prompt), stream) for place, stream in enumerate(numbers)]


def _check_lengths(
    model: Reader, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Raises InputError where a text would run past the model's positions."""
    positions = model.max_positions
    longest, place = max((len(ids), place) for place, ids in enumerate(encoded))
    if positions is not None and longest + max_new_tokens > positions:
        raise InputError(
            f"prompt '{prompts[place].id}' has {longest} tokens; with {max_new_tokens} new ones it does not fit into "
            f"the model's {positions} positions: lower sampling.max_new_tokens or give a shorter prompt"
        )


def grouped(
    model: Reader,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[int, ...]],
    rows: Sequence[Row],
    version: int,
    *,
    with_end: bool = False,
) -> list[Group]:
    """Finished rows as groups, in the order of the prompts.

    Args:
        with_end: whether the token that ends a text is decoded too: it may be a character of the text.
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
