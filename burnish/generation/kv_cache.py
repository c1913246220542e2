"""Keys and values of everything that is being sampled, allocated once.

A prompt's lie in one place for all samples of its group; a sample's own lie in a row that is written a token a step. A row
that is done gives its place to another sample, or the last row is moved there: no row is copied because time passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.policies.kernels.attention import GroupSpan, PackedAttention


class _Layer:
    """One layer's keys and values: of prompts [groups, K, T, D], of samples [rows, K, T, D]."""

    def __init__(
        self, key: Tensor, value: Tensor, groups: int, rows: int, longest_prompt: int, longest_answer: int
    ) -> None:
        heads = key.shape[0]
        # Zeros, since a masked place counts zero times whatever stands there, and that must not be not-a-number.
        self.prompts = [tensor.new_zeros(groups, heads, longest_prompt, tensor.shape[-1]) for tensor in (key, value)]
        self.answers = [tensor.new_zeros(rows, heads, longest_answer, tensor.shape[-1]) for tensor in (key, value)]


class SharedPrefixCache:
    """Attends for the engine: ``prefill`` takes prompts in, ``decode`` one more token of every row.

    Args:
        groups, rows: prompts and samples that may be held at once.
        longest_prompt, longest_answer: in tokens; the answer's last token needs no place, nothing is drawn after it.
    """

    def __init__(
        self, groups: int, rows: int, longest_prompt: int, longest_answer: int, device: torch.device | None = None
    ) -> None:
        self._device = device
        self._sizes = groups, rows, longest_prompt, max(longest_answer - 1, 1)
        self._layers: dict[int, _Layer] = {}
        self.prompt_lengths: list[int] = []
        """Of each held prompt; its place in the list is its group's."""
        self.group_of: list[int] = []
        self.lengths: list[int] = []
        """Of each row: its group, and how many of its tokens the cache holds."""
        self._incoming: PackedAttention | None = None
        self._plan: _Plan | None = None

    @property
    def longest(self) -> int:
        return self._sizes[2] + self._sizes[3] + 1

    def prefill(self, lengths: Sequence[int]) -> None:
        """What is run next are whole prompts of these lengths, one behind the other; they take the next groups."""
        starts = [sum(lengths[:place]) for place in range(len(lengths))]
        spans = (GroupSpan(start, start + length, ()) for start, length in zip(starts, lengths, strict=True))
        self._incoming = PackedAttention(tuple(spans))
        self.prompt_lengths += lengths

    def decode(self) -> None:
        """What is run next is the newest token of every row."""
        self._incoming = None
        self._plan = _Plan(self.group_of, self.lengths, self.prompt_lengths, self._device)

    def decoded(self) -> None:
        """Every row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]

    def add_row(self, group: int) -> None:
        """A new sample of a held prompt, behind the others."""
        self.group_of.append(group)
        self.lengths.append(0)

    def drop_row(self, row: int) -> None:
        """A sample is done; the last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self._layers.values():
                for tensor in layer.answers:
                    tensor[row, :, : self.lengths[last]] = tensor[last, :, : self.lengths[last]]
            self.group_of[row], self.lengths[row] = self.group_of[last], self.lengths[last]
        del self.group_of[last], self.lengths[last]

    def drop_group(self, group: int) -> None:
        """A prompt has no more samples; the last prompt takes its place."""
        last = len(self.prompt_lengths) - 1
        if group != last:
            for layer in self._layers.values():
                for tensor in layer.prompts:
                    tensor[group, :, : self.prompt_lengths[last]] = tensor[last, :, : self.prompt_lengths[last]]
            self.prompt_lengths[group] = self.prompt_lengths[last]
            self.group_of = [group if held == last else held for held in self.group_of]
        del self.prompt_lengths[last]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer not in self._layers:
            self._layers[layer] = _Layer(key, value, *self._sizes)
        held = self._layers[layer]
        if self._incoming is not None:
            first = len(self.prompt_lengths) - len(self._incoming.spans)
            for place, span in enumerate(self._incoming.spans, first):
                for tensor, new in zip(held.prompts, (key, value), strict=True):
                    tensor[place, :, : span.stop - span.start] = new[:, span.start : span.stop]
            return self._incoming.attend(layer, query, key, value, scale)
        assert self._plan is not None
        return self._plan.attend(held, query, key, value, scale)


class _Plan:
    """How one step's rows lie in the cache: made once a step, used in every layer."""

    def __init__(
        self,
        group_of: Sequence[int],
        lengths: Sequence[int],
        prompt_lengths: Sequence[int],
        device: torch.device | None,
    ) -> None:
        self.rows, self.groups = len(group_of), len(prompt_lengths)
        self.prompt, self.answer = max(prompt_lengths), max(lengths) + 1
        self.even = min(lengths) == max(lengths)
        self.lengths = torch.tensor(lengths, device=device)
        self.all = torch.arange(self.rows, device=device)
        members: list[list[int]] = [[] for _ in prompt_lengths]
        for row, group in enumerate(group_of):
            members[group].append(row)
        # Rows by group in a rectangle [groups, size], so that a group's queries are one product with its prompt's keys.
        self.size = max(map(len, members))
        self.places: Tensor | None = None
        if [row for rows in members for row in rows] != list(range(self.rows)) or self.rows != self.groups * self.size:
            filled = [rows + [0] * (self.size - len(rows)) for rows in members]
            self.places = torch.tensor(filled, device=device).flatten()
            back = [0] * self.rows
            for group, rows in enumerate(members):
                for place, row in enumerate(rows):
                    back[row] = group * self.size + place
            self.back = torch.tensor(back, device=device)
        self.mask: Tensor | None = None
        if not self.even or min(prompt_lengths) < self.prompt:
            seen = torch.tensor([prompt_lengths[group] for group in group_of], device=device)
            prompt = torch.arange(self.prompt, device=device) >= seen[:, None]
            answer = torch.arange(self.answer, device=device) > self.lengths[:, None]
            self.mask = torch.cat([prompt, answer], 1)[:, None, None]

    def attend(self, held: _Layer, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, group = query.shape[:2]
        for tensor, new in zip(held.answers, (key, value), strict=True):
            if self.even:
                tensor[: self.rows, :, self.answer - 1] = new.transpose(0, 1)
            else:
                tensor[self.all, :, self.lengths] = new.transpose(0, 1)
        queries = (query.permute(2, 0, 1, 3) * scale).contiguous()  # [B, K, g, D]
        own_keys, own_values = (
            tensor[: self.rows].flatten(0, 1)[:, : self.answer] for tensor in held.answers
        )  # [B K, T, D]
        prompt_keys, prompt_values = (
            tensor[: self.groups].flatten(0, 1)[:, : self.prompt] for tensor in held.prompts
        )  # [P K, T, D]
        own = torch.bmm(queries.view(self.rows * heads, group, -1), own_keys.mT)
        seen = torch.bmm(self._by_group(queries), prompt_keys.mT)
        scores = torch.cat([self._by_row(seen, heads, group), own.view(self.rows, heads, group, -1)], -1)
        if self.mask is not None:
            scores.masked_fill_(self.mask, float("-inf"))
        weights = scores.softmax(-1)
        of_prompt, of_own = weights[..., : self.prompt], weights[..., self.prompt :]
        found = torch.bmm(of_own.flatten(0, 1), own_values).view(self.rows, heads, group, -1)
        return found.add_(self._by_row(torch.bmm(self._by_group(of_prompt), prompt_values), heads, group))

    def _by_group(self, rows: Tensor) -> Tensor:
        """[B, K, g, X] -> [P K, size g, X]."""
        arranged = rows if self.places is None else rows[self.places]
        heads, group, width = rows.shape[1:]
        split = arranged.reshape(self.groups, self.size, heads, group, width).transpose(1, 2)
        return split.reshape(self.groups * heads, self.size * group, width)

    def _by_row(self, groups: Tensor, heads: int, group: int) -> Tensor:
        """[P K, size g, X] -> [B, K, g, X]."""
        split = groups.view(self.groups, heads, self.size, group, -1).transpose(1, 2)
        arranged = split.reshape(self.groups * self.size, heads, group, -1)
        return arranged if self.places is None else arranged[self.back]
