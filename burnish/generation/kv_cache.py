"""Key-value cache of the sampling engine, allocated once per call.

The keys and values of a prompt are stored once for all samples of its group. Each sample has a row for its own tokens.
When a sample finishes, the last row moves to its index; no other copies are made.

Letters: P groups (prompts), B rows (samples), K key-value heads, g query heads per key-value head, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from burnish.policies.kernels.attention import PackedAttention
from burnish.policies.kernels.loops import compiled_loops
from burnish.policies.kernels.spans import GroupSpan


class _LayerCache:
    """Keys and values of one layer: ``prompts`` are [groups, K, T, D] each, ``answers`` are [rows, K, T, D] each."""

    def __init__(
        self, key: Tensor, value: Tensor, groups: int, rows: int, longest_prompt: int, longest_answer: int
    ) -> None:
        heads = key.shape[0]
        # Zeros, not empty memory: masked positions have weight zero, and zero times NaN would be NaN.
        self.prompts = [tensor.new_zeros(groups, heads, longest_prompt, tensor.shape[-1]) for tensor in (key, value)]
        self.answers = [tensor.new_zeros(rows, heads, longest_answer, tensor.shape[-1]) for tensor in (key, value)]


class SharedPrefixCache:
    """Attention backend of the engine: ``prefill`` adds prompts, ``decode`` adds one token to every row.

    Args:
        groups, rows: prompts and samples that may be cached at once.
        longest_prompt, longest_answer: in tokens; the last token of an answer is never run and needs no room.
        device: of the indices and masks.
    """

    def __init__(
        self, groups: int, rows: int, longest_prompt: int, longest_answer: int, device: torch.device | None = None
    ) -> None:
        self._device = device
        self._sizes = groups, rows, longest_prompt, max(longest_answer - 1, 1)
        self._layers: list[_LayerCache] = []
        """One for each call of attention in a pass, in their order: a layer may attend twice, or run again."""
        self._call = 0
        self.prompt_lengths: list[int] = []
        """Length of each group's prompt."""
        self.row_groups: list[int] = []
        self.lengths: list[int] = []
        """Number of each row's tokens in the cache."""
        self._incoming: PackedAttention | None = None
        self._plan: _DecodePlan | None = None

    @property
    def max_text_length(self) -> int:
        return self._sizes[2] + self._sizes[3] + 1

    def prefill(self, lengths: Sequence[int]) -> None:
        """Prepare for a pass over whole prompts of these lengths, one after the other; they become the last groups."""
        spans = (GroupSpan(stop - size, stop, ()) for stop, size in zip(accumulate(lengths), lengths, strict=True))
        self._incoming, self._call = PackedAttention(tuple(spans)), 0
        self.prompt_lengths += lengths

    def decode(self) -> None:
        """Prepare for a pass over the newest token of every row."""
        self._incoming, self._call = None, 0
        self._plan = _DecodePlan(self.row_groups, self.lengths, self.prompt_lengths, self._device)

    def advance(self) -> None:
        """Count one more token in every row, after a ``decode`` pass."""
        self.lengths = [length + 1 for length in self.lengths]

    def add_row(self, group: int) -> None:
        """Append a row for a new sample of a cached prompt."""
        self.row_groups.append(group)
        self.lengths.append(0)

    def drop_row(self, row: int) -> None:
        """Remove a row; the last row moves to its index."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self._layers:
                for tensor in layer.answers:
                    tensor[row, :, : self.lengths[last]] = tensor[last, :, : self.lengths[last]]
            self.row_groups[row], self.lengths[row] = self.row_groups[last], self.lengths[last]
        del self.row_groups[last], self.lengths[last]

    def drop_group(self, group: int) -> None:
        """Remove a prompt without rows; the last prompt moves to its index."""
        last = len(self.prompt_lengths) - 1
        if group != last:
            for layer in self._layers:
                for tensor in layer.prompts:
                    tensor[group, :, : self.prompt_lengths[last]] = tensor[last, :, : self.prompt_lengths[last]]
            self.prompt_lengths[group] = self.prompt_lengths[last]
            self.row_groups = [group if cached == last else cached for cached in self.row_groups]
        del self.prompt_lengths[last]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if self._call == len(self._layers):
            self._layers.append(_LayerCache(key, value, *self._sizes))
        cached = self._layers[self._call]
        self._call += 1
        if self._incoming is not None:
            first = len(self.prompt_lengths) - len(self._incoming.spans)
            for group, span in enumerate(self._incoming.spans, first):
                for tensor, new in zip(cached.prompts, (key, value), strict=True):
                    tensor[group, :, : span.stop - span.start] = new[:, span.start : span.stop]
            return self._incoming.attend(query, key, value, scale)
        assert self._plan is not None
        return self._plan.attend(cached, query, key, value, scale)


class _DecodePlan:
    """Arrangement of one decoding step's rows, computed once per step and used in every layer."""

    def __init__(
        self,
        row_groups: Sequence[int],
        lengths: Sequence[int],
        prompt_lengths: Sequence[int],
        device: torch.device | None,
    ) -> None:
        self.rows, self.groups = len(row_groups), len(prompt_lengths)
        self.prompt_width, self.answer_width = max(prompt_lengths), max(lengths) + 1
        self.equal_lengths = min(lengths) == max(lengths)
        self.lengths = torch.tensor(lengths, device=device)
        self.row_groups = torch.tensor(row_groups, device=device)
        self.row_prompt_lengths = torch.tensor([prompt_lengths[group] for group in row_groups], device=device)
        self.all_rows = torch.arange(self.rows, device=device)
        members: list[list[int]] = [[] for _ in prompt_lengths]
        for row, group in enumerate(row_groups):
            members[group].append(row)
        # A rectangle [groups, size] of rows, padded with row 0: one product per group with its prompt's keys.
        self.size = max(map(len, members))
        self.order: Tensor | None = None
        if [row for rows in members for row in rows] != list(range(self.rows)) or self.rows != self.groups * self.size:
            filled = [rows + [0] * (self.size - len(rows)) for rows in members]
            self.order = torch.tensor(filled, device=device).flatten()
            inverse = [0] * self.rows
            for group, rows in enumerate(members):
                for index, row in enumerate(rows):
                    inverse[row] = group * self.size + index
            self.inverse = torch.tensor(inverse, device=device)
        self.mask: Tensor | None = None
        if not self.equal_lengths or min(prompt_lengths) < self.prompt_width:
            prompt = torch.arange(self.prompt_width, device=device) >= self.row_prompt_lengths[:, None]
            answer = torch.arange(self.answer_width, device=device) > self.lengths[:, None]
            self.mask = torch.cat([prompt, answer], 1)[:, None, None]

    def attend(self, cached: _LayerCache, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, group = query.shape[:2]
        loops = compiled_loops(query, key, value) if self._fits_loop(cached, query, key, value) else None
        if loops is not None:
            output = query.new_empty(self.rows, heads, group, query.shape[-1])
            loops.attend(
                self.rows, *output.shape[1:], cached.prompts[0].shape[2], cached.answers[0].shape[2],
                query, query.stride(2), *query.stride()[:2], key, key.stride(1), key.stride(0), value, *cached.prompts,
                *cached.answers, self.row_prompt_lengths, self.row_groups, self.lengths, output, scale,
            )  # fmt: skip
            return output
        for tensor, new in zip(cached.answers, (key, value), strict=True):
            if self.equal_lengths:
                tensor[: self.rows, :, self.answer_width - 1] = new.transpose(0, 1)
            else:
                tensor[self.all_rows, :, self.lengths] = new.transpose(0, 1)
        queries = (query.permute(2, 0, 1, 3) * scale).contiguous()  # [B, K, g, D]
        own_keys, own_values = (
            tensor[: self.rows].flatten(0, 1)[:, : self.answer_width] for tensor in cached.answers
        )  # [B K, T, D]
        prompt_keys, prompt_values = (
            tensor[: self.groups].flatten(0, 1)[:, : self.prompt_width] for tensor in cached.prompts
        )  # [P K, T, D]
        own_scores = torch.bmm(queries.view(self.rows * heads, group, -1), own_keys.mT)
        prompt_scores = torch.bmm(self._by_group(queries), prompt_keys.mT)
        scores = torch.cat(
            [self._by_row(prompt_scores, heads, group), own_scores.view(self.rows, heads, group, -1)], -1
        )
        if self.mask is not None:
            scores.masked_fill_(self.mask, float("-inf"))
        weights = scores.softmax(-1)
        prompt_weights, own_weights = weights[..., : self.prompt_width], weights[..., self.prompt_width :]
        output = torch.bmm(own_weights.flatten(0, 1), own_values).view(self.rows, heads, group, -1)
        return output.add_(self._by_row(torch.bmm(self._by_group(prompt_weights), prompt_values), heads, group))

    def _fits_loop(self, cached: _LayerCache, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Return whether strides and shapes are those that the compiled loop reads without checking them."""
        heads, _, rows, width = query.shape
        dense = query.stride(-1) == key.stride(-1) == 1 and value.stride() == key.stride()
        shapes = key.shape == value.shape == (heads, rows, width) and rows == self.rows
        return dense and shapes and all(
            len(tensor) >= count and tensor.shape[1::2] == (heads, width) and tensor.shape[2] >= longest
            for tensors, count, longest in (
                (cached.prompts, self.groups, self.prompt_width), (cached.answers, self.rows, self.answer_width),
            ) for tensor in tensors
        )  # fmt: skip

    def _by_group(self, rows: Tensor) -> Tensor:
        """Arrange rows [B, K, g, X] by group: [P K, size g, X]."""
        arranged = rows if self.order is None else rows[self.order]
        heads, group, width = rows.shape[1:]
        split = arranged.reshape(self.groups, self.size, heads, group, width).transpose(1, 2)
        return split.reshape(self.groups * heads, self.size * group, width)

    def _by_row(self, groups: Tensor, heads: int, group: int) -> Tensor:
        """Invert ``_by_group``: [P K, size g, X] -> [B, K, g, X]."""
        split = groups.view(self.groups, heads, self.size, group, -1).transpose(1, 2)
        arranged = split.reshape(self.groups * self.size, heads, group, -1)
        return arranged if self.order is None else arranged[self.inverse]
