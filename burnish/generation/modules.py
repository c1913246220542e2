"""Sampling from a torch module: incrementally if it has a state, else by running the whole text for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from burnish.generation.rows import Drawer, RowSampler, SampleRow
from burnish.policies.kernels.packing import pad_token_ids
from burnish.policies.module import ModuleModel, State
from burnish.types import SamplingParams


class _Texts(Protocol):
    """N texts that grow by one token at a time."""

    logits: Tensor
    """[N, V], logits of the next token."""

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        ...

    def push(self, tokens: Tensor) -> None:
        """Append one token [N] to each text."""
        ...


class _StatefulTexts:
    def __init__(self, model: ModuleModel, prompts: Sequence[Sequence[int]], row_prompts: Tensor) -> None:
        self.model = model
        logits, state = model.read_prompts(prompts)
        self.logits = logits[row_prompts]
        self.state: State = tuple(part[row_prompts] for part in state)

    def keep(self, rows: Tensor) -> None:
        self.state = tuple(part[rows] for part in self.state)

    def push(self, tokens: Tensor) -> None:
        logits, self.state = self.model.advance(tokens[:, None], self.state)
        self.logits = logits[:, -1]


class _RecomputedTexts:
    def __init__(self, model: ModuleModel, prompts: Sequence[Sequence[int]], row_prompts: Tensor) -> None:
        self.model = model
        self.ids, mask = pad_token_ids(prompts, left=False, device=model.device)
        self.lengths = mask.sum(-1)
        self.logits = self._read()[row_prompts]
        self.ids, self.lengths = self.ids[row_prompts], self.lengths[row_prompts]

    def _read(self) -> Tensor:
        logits = self.model.logits(self.ids)
        return logits[torch.arange(len(self.ids), device=self.ids.device), self.lengths - 1]

    def keep(self, rows: Tensor) -> None:
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

    def push(self, tokens: Tensor) -> None:
        if int(self.lengths.max()) == self.ids.shape[1]:
            self.ids = torch.cat([self.ids, torch.zeros_like(self.ids[:, :1])], 1)
        self.ids = self.ids.scatter(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        self.logits = self._read()


class ModuleSampler(RowSampler):
    """Sampler with the module's own weights; ``recompute`` runs the whole text per token even if it has a state."""

    def __init__(self, model: ModuleModel, *, recompute: bool = False) -> None:
        super().__init__(model, with_end=True)
        self.model = model
        self.recompute = recompute or not model.advances

    def fill(self, encoded: Sequence[tuple[int, ...]], rows: Sequence[SampleRow], sampling: SamplingParams) -> None:
        """Draw tokens until all rows are finished; finished rows leave the batch."""
        row_prompts = torch.tensor([row.prompt for row in rows], device=self.model.device)
        texts_class = _RecomputedTexts if self.recompute else _StatefulTexts
        policy: _Texts = texts_class(self.model, encoded, row_prompts)
        lagged: _Texts | None = None
        if sampling.lagged_top_p < 1 and self.model.lagged is not None:
            lagged = texts_class(self.model.lagged, encoded, row_prompts)
        texts = [policy] if lagged is None else [policy, lagged]  # both see the same tokens
        draw = Drawer(self.model, sampling)
        live = list(rows)
        for step in range(sampling.max_new_tokens):
            # The logits are overwritten, and a module may return a view of its own weights.
            tokens = draw(live, policy.logits.clone(), lagged.logits if lagged else None)
            unfinished = [index for index, row in enumerate(live) if row.reason == "length"]
            if not unfinished or step + 1 == sampling.max_new_tokens:
                return
            if len(unfinished) < len(live):
                kept = torch.tensor(unfinished, device=tokens.device)
                for one in texts:
                    one.keep(kept)
                live, tokens = [live[index] for index in unfinished], tokens[kept]
            for one in texts:
                one.push(tokens)
