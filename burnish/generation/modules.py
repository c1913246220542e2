"""Sampling from a module: from its state where it has one, else by giving it the whole text for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from burnish.generation.equal_length import Row, begun, grouped
from burnish.policies.module import ModuleModel, State, padded
from burnish.policies.sampling_distribution import draw_tokens
from burnish.types import Group, Prompt, SamplingParams


class _Texts(Protocol):
    """N texts that grow by a token at a time."""

    logits: Tensor
    """[N, V], of what comes next."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the rows only."""
        ...

    def push(self, tokens: Tensor) -> None:
        """Adds a token [N] to each."""
        ...


class _FromState:
    def __init__(self, model: ModuleModel, prompts: Sequence[Sequence[int]], owner: Tensor) -> None:
        self.model = model
        logits, state = model.read_prompts(prompts)
        self.logits = logits[owner]
        self.state: State = tuple(part[owner] for part in state)

    def keep(self, rows: Tensor) -> None:
        self.state = tuple(part[rows] for part in self.state)

    def push(self, tokens: Tensor) -> None:
        logits, self.state = self.model.advance(tokens[:, None], self.state)
        self.logits = logits[:, -1]


class _Recomputed:
    def __init__(self, model: ModuleModel, prompts: Sequence[Sequence[int]], owner: Tensor) -> None:
        self.model = model
        self.ids, mask = padded(prompts, model.device)
        self.lengths = mask.sum(-1)
        self.logits = self._read()[owner]
        self.ids, self.lengths = self.ids[owner], self.lengths[owner]

    def _read(self) -> Tensor:
        everywhere = self.model.logits(self.ids)
        return everywhere[torch.arange(len(self.ids), device=self.ids.device), self.lengths - 1]

    def keep(self, rows: Tensor) -> None:
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

    def push(self, tokens: Tensor) -> None:
        if int(self.lengths.max()) == self.ids.shape[1]:
            self.ids = torch.cat([self.ids, torch.zeros_like(self.ids[:, :1])], 1)
        self.ids = self.ids.scatter(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        self.logits = self._read()


class ModuleSampler:
    """Samples with the module's own weights, which it shares with the trainer.

    Args:
        model: what to sample from.
        recompute: gives the module the whole text for each token even where it could read on from a state.
    """

    def __init__(self, model: ModuleModel, *, recompute: bool = False) -> None:
        self.model = model
        self.recompute = recompute or not model.advances

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
            InputError: a prompt cannot be encoded, or does not fit into the module's positions with its completion.
        """
        if not prompts:
            return []
        encoded, rows = begun(self.model, prompts, samples_per_prompt, sampling, seed)
        owner = torch.tensor([row.prompt for row in rows], device=self.model.device)
        kind = _Recomputed if self.recompute else _FromState
        texts: list[_Texts] = [kind(self.model, encoded, owner)]
        if sampling.lagged_top_p < 1 and self.model.lagged is not None:
            texts.append(kind(self.model.lagged, encoded, owner))
        self._decode(texts, rows, sampling)
        return grouped(self.model, prompts, encoded, rows, policy_version, with_end=True)

    def _decode(self, texts: Sequence[_Texts], rows: Sequence[Row], sampling: SamplingParams) -> None:
        """Fills the rows; those that are done leave the batch. The second of two readers, which see the same tokens, is the
        lagged policy."""
        reader, lagged = texts[0], texts[1] if len(texts) > 1 else None
        ends = self.model.vocabulary.ends
        live = list(rows)
        for step in range(sampling.max_new_tokens):
            uniforms = torch.tensor([row.stream[step] for row in live], dtype=torch.float64)
            # A copy: the draw writes over it, and a module may hand out a view of its own weights.
            tokens, logprobs = draw_tokens(
                reader.logits.clone(), uniforms.to(reader.logits.device), sampling, lagged.logits if lagged else None
            )
            for row, token, logprob in zip(live, tokens.tolist(), logprobs.tolist(), strict=True):
                row.take(token, logprob, ends)
            going = [place for place, row in enumerate(live) if row.reason == "length"]
            if not going or step + 1 == sampling.max_new_tokens:
                return
            if len(going) < len(live):
                index = torch.tensor(going, device=tokens.device)
                for one in texts:
                    one.keep(index)
                live, tokens = [live[place] for place in going], tokens[index]
            for one in texts:
                one.push(tokens)
