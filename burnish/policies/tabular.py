"""A policy that is a table: the next token depends on the last one alone. Small enough for every number to be known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.errors import InputError
from burnish.exactness.verify import World
from burnish.exactness.world import all_sequences, logits_from_probabilities
from burnish.policies.sampling_distribution import draw, random_streams, sampling_logprobs
from burnish.protocols import LanguageModel
from burnish.types import Completion, Group, Prompt, SamplingParams, TokenStats

VOCABULARY = "我爱你。"
START = len(VOCABULARY)
PROBABILITIES = {START: {0: 0.5}, 0: {1: 0.8}, 1: {2: 0.6}, 2: {3: 1.0}}
"""Row -> token -> probability of the known world: P(我|start) = 0.5, P(爱|我) = 0.8, P(你|爱) = 0.6, P(。|你) = 1."""


def known_world() -> World:
    """The world of ``burnish verify``: reward 1 for 我爱你。, 0 for the 120 other sequences; J = 0.5 * 0.8 * 0.6 = 0.24.

    The reference of its KL terms is uniform but for the row that has probability 1, which it shares.
    """
    sequences = all_sequences(len(VOCABULARY), max_length=4, end=len(VOCABULARY) - 1)
    wanted = torch.tensor([0, 1, 2, 3])
    rewards = ((sequences.tokens == wanted) & sequences.mask).all(-1).double()
    reference = logits_from_probabilities({2: PROBABILITIES[2]}, len(VOCABULARY))
    return World(
        logits_from_probabilities(PROBABILITIES, len(VOCABULARY)), reference, sequences, rewards, tuple(VOCABULARY)
    )


class Table:
    """Log-probabilities from a table of logits; the frozen reference is one of these."""

    def __init__(self, logits: Tensor, vocabulary: str = VOCABULARY) -> None:
        self.logits = logits
        self.vocabulary = vocabulary
        self.end = len(vocabulary) - 1

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids, one a character. Raises InputError on a character that the table does not have."""
        unknown = [character for character in text if character not in self.vocabulary]
        if unknown:
            raise InputError(f"the table knows only {' '.join(self.vocabulary)}, not '{unknown[0]}'")
        return tuple(self.vocabulary.index(character) for character in text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's tokens; none for an empty prompt, which is the start state."""
        return self.encode(prompt.text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.vocabulary[token] for token in token_ids)

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        """[T], nats."""
        rows, tokens = self.states(completions)
        with torch.no_grad():
            return (self.logits / temperature).log_softmax(-1)[rows, tokens]

    def states(self, completions: Sequence[Completion]) -> tuple[Tensor, Tensor]:
        """The table's row that each token was drawn from, and the tokens; [T] each."""
        rows: list[int] = []
        tokens: list[int] = []
        for completion in completions:
            start = completion.prompt_ids[-1] if completion.prompt_ids else len(self.vocabulary)
            rows += [start, *completion.token_ids[:-1]]
            tokens += completion.token_ids
        return torch.tensor(rows, dtype=torch.long), torch.tensor(tokens, dtype=torch.long)


class TablePolicy(Table):
    """The table as a policy, and its own sampler.

    Args:
        logits: [V+1, V] float64; the known world where it is left out.
    """

    def __init__(self, logits: Tensor | None = None, vocabulary: str = VOCABULARY) -> None:
        table = logits_from_probabilities(PROBABILITIES, len(vocabulary)) if logits is None else logits
        super().__init__(table, vocabulary)
        self.parameter = nn.Parameter(table.clone())
        self.logits = self.parameter
        self._reference = Table(table.clone(), vocabulary)
        self.lagged: Tensor | None = None
        """[V+1, V], an earlier table, where it masks what is drawn."""

    @property
    def reference(self) -> LanguageModel:
        return self._reference

    def update_lagged_policy(self) -> None:
        """Makes the table as it is now the lagged policy."""
        self.lagged = self.parameter.detach().clone()

    def logprobs(
        self, completions: Sequence[Completion], sampling: SamplingParams, *, entropy_gradient: bool = False
    ) -> TokenStats:
        """Log-probabilities [T] with gradient and entropies [T], nats."""
        rows, tokens = self.states(completions)
        lagged = None if self.lagged is None else self.lagged[rows]
        full = sampling_logprobs(self.parameter.index_select(0, rows), sampling, always=tokens, lagged=lagged)
        # A logit of minus infinity has probability 0 whatever the others are: its share of every gradient is 0.
        chosen = full.gather(-1, tokens[:, None]).squeeze(-1)
        seen = full if entropy_gradient else full.detach()
        # The slope of x log x at 0 is infinite, and infinity times a slope of 0 is no number: what is impossible is masked.
        entropy = -(seen.exp() * torch.where(seen.isfinite(), seen, 0.0)).sum(-1)
        return TokenStats(chosen, entropy)

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
        """P groups of G completions."""
        with torch.no_grad():
            table = sampling_logprobs(self.parameter, sampling, lagged=self.lagged)
        uniforms = torch.from_numpy(
            np.array(random_streams(prompts, samples_per_prompt, seed, sampling.max_new_tokens))
        )
        encoded = [self.encode_prompt(prompt) for prompt in prompts]
        states = torch.tensor([ids[-1] if ids else len(self.vocabulary) for ids in encoded])
        drawn = iter(self._draw(table, states.repeat_interleave(samples_per_prompt), uniforms))
        return [
            Group(prompt, tuple(
                self._completion(prompt, prompt_ids, next(drawn), policy_version, index)
                for index in range(samples_per_prompt)
            ))
            for prompt, prompt_ids in zip(prompts, encoded, strict=True)
        ]  # fmt: skip

    def _draw(self, table: Tensor, states: Tensor, uniforms: Tensor) -> list[list[tuple[int, float]]]:
        """Return the tokens of N samples with their log-probabilities; ``states`` [N] are the rows that they start from."""
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
        self, prompt: Prompt, prompt_ids: tuple[int, ...], drawn: list[tuple[int, float]], version: int, index: int
    ) -> Completion:
        tokens, logprobs = zip(*drawn, strict=True)
        # The full stop ends the text and is part of it, unlike the end-of-text token of a language model.
        return Completion(
            prompt, prompt_ids, tokens, self.decode(tokens), logprobs,
            "stop" if tokens[-1] == self.end else "length", version, index,
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        lagged = {} if self.lagged is None else {"lagged": self.lagged}
        save_file({"logits": self.parameter.detach(), **lagged}, folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        with torch.no_grad():
            found = load_file(folder / "model.safetensors")
            self.parameter.copy_(found["logits"])
            if self.lagged is not None and "lagged" in found:
                self.lagged.copy_(found["lagged"])
