"""Tabular policy: the next token depends on the last token only, so every quantity can be computed exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.errors import InputError
from burnish.exactness.verify import World
from burnish.exactness.world import all_sequences, logits_from_probabilities
from burnish.policies.sampling_distribution import draw, is_truncated, random_streams, sampling_logprobs, token_stats
from burnish.protocols import LanguageModel
from burnish.types import Completion, Group, Prompt, SamplingParams, TokenStats

VOCABULARY = "我爱你。"
START = len(VOCABULARY)
PROBABILITIES = {START: {0: 0.5}, 0: {1: 0.8}, 1: {2: 0.6}, 2: {3: 1.0}}
"""State -> token -> probability in the known world: P(我|start) = 0.5, P(爱|我) = 0.8, and so on."""


def known_world() -> World:
    """Return the world of ``burnish verify``.

    The reward is 1 for 我爱你。 and 0 for the 120 other sequences, so J = 0.5 * 0.8 * 0.6 = 0.24. The reference is
    uniform, except for the row with probability 1.
    """
    sequences = all_sequences(len(VOCABULARY), max_length=4, end=len(VOCABULARY) - 1)
    wanted = torch.tensor([0, 1, 2, 3])
    rewards = ((sequences.tokens == wanted) & sequences.mask).all(-1).double()
    logits, reference = (
        logits_from_probabilities(rows, len(VOCABULARY)) for rows in (PROBABILITIES, {2: PROBABILITIES[2]})
    )
    return World(logits, reference, sequences, rewards, tuple(VOCABULARY))


class TableModel:
    """Table of logits [V+1, V]: one row per last token and one for the start. Also the frozen reference."""

    def __init__(self, logits: Tensor, vocabulary: str = VOCABULARY) -> None:
        self.logits = logits
        self.vocabulary = vocabulary
        self.end = len(vocabulary) - 1

    def encode(self, text: str) -> tuple[int, ...]:
        """Return one token id per character. Raises InputError for a character that is not in the vocabulary."""
        if unknown := [character for character in text if character not in self.vocabulary]:
            raise InputError(f"the table knows only {' '.join(self.vocabulary)}, not '{unknown[0]}'")
        return tuple(self.vocabulary.index(character) for character in text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the prompt's token ids; an empty prompt has none and means the start state."""
        return self.encode(prompt.text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.vocabulary[token] for token in token_ids)

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """Return log-probabilities [T], nats, without gradient."""
        rows, tokens = self.states(completions)
        with torch.no_grad():
            return (self.logits / temperature).log_softmax(-1)[rows, tokens]

    def states(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """Return the row of the table that predicts each token, and the tokens; [T] each."""
        rows: list[int] = []
        tokens: list[int] = []
        for completion in completions:
            start = completion.prompt_ids[-1] if completion.prompt_ids else len(self.vocabulary)
            rows += [start, *completion.token_ids[:-1]]
            tokens += completion.token_ids
        return torch.tensor(rows, dtype=torch.long), torch.tensor(tokens, dtype=torch.long)


class TablePolicy(TableModel):
    """Table of logits that is trained; it is its own sampler.

    Args:
        logits: [V+1, V], float64; by default those of the known world.
        vocabulary: one character per token; the last one ends a text.
    """

    def __init__(self, logits: Tensor | None = None, vocabulary: str = VOCABULARY) -> None:
        table = logits_from_probabilities(PROBABILITIES, len(vocabulary)) if logits is None else logits
        super().__init__(table, vocabulary)
        self.parameter = nn.Parameter(table.clone())
        self.logits = self.parameter
        self.reference: LanguageModel = TableModel(table.clone(), vocabulary)
        self.lagged: Tensor | None = None
        """[V+1, V], logits of the lagged policy, if there is one."""

    def update_lagged_policy(self) -> None:
        """Replace the lagged policy by the current table."""
        self.lagged = self.parameter.detach().clone()

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Return log-probabilities with gradient and entropies, [T] each, nats."""
        rows, tokens = self.states(completions)
        lagged = None if self.lagged is None else self.lagged[rows]
        logits = self.parameter.index_select(0, rows)
        return token_stats(logits, tokens, sampling, lagged=lagged, entropy_gradient=entropy_gradient)

    @property
    def max_microbatch_tokens(self) -> int:
        return 1 << 20

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {"logits": self.parameter}

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        sampling: SamplingParams,
        seed: Sequence[int],
        policy_version: int = 0,
    ) -> list[Group]:
        """Return P groups of G completions."""
        with torch.no_grad():
            table = sampling_logprobs(self.parameter, sampling, lagged=self.lagged)
            full = (self.parameter / sampling.temperature).log_softmax(-1) if is_truncated(sampling) else None
        streams = random_streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens)
        encoded = [self.encode_prompt(prompt) for prompt in prompts]
        states = torch.tensor([ids[-1] if ids else len(self.vocabulary) for ids in encoded])
        first = states.repeat_interleave(samples_per_prompt)
        drawn = iter(self._draw(table, first, torch.from_numpy(np.array(streams))))
        return [
            Group(prompt, tuple(
                self._completion(prompt, prompt_ids, next(drawn), policy_version, index, full)
                for index in range(samples_per_prompt)
            ))
            for prompt, prompt_ids in zip(prompts, encoded, strict=True)
        ]  # fmt: skip

    def _draw(self, table: Tensor, states: Tensor, uniforms: Tensor) -> list[list[tuple[int, float]]]:
        """Return the tokens of N samples with their log-probabilities; ``states`` [N] are their first rows."""
        drawn: list[list[tuple[int, float]]] = [[] for _ in states]
        live = torch.arange(len(states))
        for numbers in uniforms.T:
            tokens = draw(table[states], numbers[live])
            logprobs = table[states, tokens]
            for row, token, logprob in zip(live.tolist(), tokens.tolist(), logprobs.tolist(), strict=True):
                drawn[row].append((token, logprob))
            unfinished = tokens != self.end
            live, states = live[unfinished], tokens[unfinished]
            if not len(live):
                break
        return drawn

    def _completion(
        self,
        prompt: Prompt,
        prompt_ids: tuple[int, ...],
        drawn: list[tuple[int, float]],
        version: int,
        index: int,
        full: Tensor | None,
    ) -> Completion:
        tokens, logprobs = zip(*drawn, strict=True)
        # Unlike an end-of-text token, the full stop that ends the text is part of it.
        completion = Completion(
            prompt, prompt_ids, tokens, self.decode(tokens), logprobs,
            "stop" if tokens[-1] == self.end else "length", version, index,
        )  # fmt: skip
        if full is None:
            return completion
        masses = full[self.states([completion])] - torch.tensor(logprobs, dtype=full.dtype)
        return replace(completion, sampler_log_masses=tuple(masses.tolist()))

    def save(self, folder: Path) -> None:
        lagged = {} if self.lagged is None else {"lagged": self.lagged}
        save_file({"logits": self.parameter.detach(), **lagged}, folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        with torch.no_grad():
            saved = load_file(folder / "model.safetensors")
            self.parameter.copy_(saved["logits"])
            if self.lagged is not None and "lagged" in saved:
                self.lagged.copy_(saved["lagged"])
