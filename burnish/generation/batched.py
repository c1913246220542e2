"""Sampling from a causal language model in one batch: each prompt computed once, its keys and values shared out to its
samples, and samples that are done leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.errors import InputError
from burnish.generation.sampling import draw, sampling_logprobs, streams
from burnish.policies.causal_lm import CausalModel
from burnish.policies.layout import keep_logits, padded, positions
from burnish.types import Completion, FinishReason, Group, Prompt, SamplingParams


@dataclass(slots=True)
class _Row:
    """One sample in the making."""

    prompt: int
    index: int
    stream: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = "length"


class BatchedSampler:
    """Samples with the model's own weights, which it shares with the trainer.

    Args:
        language_model: what to sample from.
        leave_share: finished rows leave once they are this share of the batch; moving the cache costs more than a few
            idle rows do.

    Raises:
        InputError: the architecture keeps a state that cannot be shared out to samples.
    """

    def __init__(self, language_model: CausalModel, *, leave_share: float = 0.25) -> None:
        self.language_model = language_model
        self.leave_share = leave_share
        self._check_cache()

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
        encoded = [self.language_model.encode_prompt(prompt) for prompt in prompts]
        self._check_lengths(prompts, encoded, sampling.max_new_tokens)
        numbers = streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens)
        rows = [_Row(*divmod(place, samples_per_prompt), stream) for place, stream in enumerate(numbers)]
        self._decode(encoded, rows, samples_per_prompt, sampling)
        done = [self._completion(prompts[row.prompt], encoded[row.prompt], row, policy_version) for row in rows]
        return [
            Group(prompt, tuple(done[p * samples_per_prompt : (p + 1) * samples_per_prompt]))
            for p, prompt in enumerate(prompts)
        ]

    @torch.no_grad()
    def _check_cache(self) -> None:
        """Does with a cache of one token what ``_decode`` does with a cache; the prompt is token 0, which all have."""
        try:
            _, cache, mask = self._prefill([[0]])
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(torch.tensor([1], device=mask.device))
        except (AttributeError, NotImplementedError, TypeError) as error:
            raise InputError(
                "this architecture's cache cannot be shared between samples, so burnish cannot sample from it yet "
                f"({self.language_model.model.config.model_type}: {error})"
            ) from error

    def _check_lengths(self, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        positions = self.language_model.max_positions
        longest, place = max((len(ids), place) for place, ids in enumerate(encoded))
        if positions is not None and longest + max_new_tokens > positions:
            raise InputError(
                f"prompt '{prompts[place].id}' has {longest} tokens; with {max_new_tokens} new ones it does not fit into "
                f"the model's {positions} positions: lower sampling.max_new_tokens or give a shorter prompt"
            )

    def _decode(
        self, encoded: Sequence[Sequence[int]], rows: list[_Row], samples_per_prompt: int, sampling: SamplingParams
    ) -> None:
        """Fills the rows."""
        logits, cache, mask = self._prefill(encoded)
        cache.batch_repeat_interleave(samples_per_prompt)
        logits = logits.repeat_interleave(samples_per_prompt, 0)
        mask = mask.repeat_interleave(samples_per_prompt, 0)
        ends = self.language_model.end_ids
        live = list(rows)
        for step in range(sampling.max_new_tokens):
            logprobs = sampling_logprobs(logits.to(torch.promote_types(logits.dtype, torch.float32)), sampling)
            tokens = draw(logprobs, torch.tensor([row.stream[step] for row in live]).to(logits.device))
            chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
            for row, token, logprob in zip(live, tokens.tolist(), chosen.tolist(), strict=True):
                if row.reason == "length":
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    if token in ends:
                        row.reason = "stop"
            going = [place for place, row in enumerate(live) if row.reason == "length"]
            if not going or step + 1 == sampling.max_new_tokens:
                return
            if len(going) <= (1 - self.leave_share) * len(live):
                index = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(index)
                live, tokens, mask = [live[place] for place in going], tokens[index], mask[index]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            output = self.language_model.model(
                input_ids=tokens[:, None], attention_mask=mask, position_ids=positions(mask)[:, -1:],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            logits = output.logits[:, -1]

    def _prefill(self, encoded: Sequence[Sequence[int]]) -> tuple[Tensor, Any, Tensor]:
        """Last logits [P, V], the cache, and the mask [P, T] of the left-padded prompts."""
        model = self.language_model.model
        ids, mask = padded(encoded, self.language_model.padding_id, left=True, device=model.device)
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, **keep_logits(model, 1)
        )  # fmt: skip
        return output.logits[:, -1], output.past_key_values, mask

    def _completion(self, prompt: Prompt, prompt_ids: tuple[int, ...], row: _Row, version: int) -> Completion:
        text = row.tokens[:-1] if row.reason == "stop" else row.tokens
        return Completion(
            prompt, prompt_ids, tuple(row.tokens), self.language_model.decode(text), tuple(row.logprobs),
            row.reason, version, row.index,
        )  # fmt: skip
