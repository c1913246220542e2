"""Key-value cache of fixed shape: every decoding step runs the same operations on the same memory.

So a step can be captured as a CUDA graph, which the host replays without a look at any result. Each row has room for a
whole text; what is not filled yet is masked.

Letters: B rows (samples), K key-value heads, g query heads per key-value head, L tokens of a row, W of them read, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from burnish.policies.kernels.attention import PackedAttention
from burnish.policies.kernels.spans import GroupSpan


class StaticCache:
    """Attention backend of the static engine: ``prefill`` fills rows with prompts, ``decode`` adds a token to every row.

    Args:
        rows: B.
        longest: L.
        device: of the cache.

    Attributes:
        max_text_length: tokens of the longest text, prompt and completion together; L has room for more.
        filled: [B], tokens of each row in the cache.
        width: W, the tokens that a decoding step reads; more than are in any row.
    """

    def __init__(self, rows: int, longest: int, device: torch.device) -> None:
        self.rows, self.longest, self.width = rows, longest, longest
        self.max_text_length = longest
        self.filled = torch.zeros(rows, dtype=torch.long, device=device)
        self._all_rows = torch.arange(rows, device=device)
        self._places = torch.arange(longest, device=device)
        self._layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values [B, K, L, D] of each call of attention in a pass, in their order."""
        self._call = 0
        self._incoming: PackedAttention | None = None
        self._owners: Sequence[Tensor] = ()
        """The rows of each incoming prompt."""
        self._hidden: Tensor | None = None
        """[B, 1, 1, W], which places a decoding step does not read."""

    def prefill(self, lengths: Sequence[int], owners: Sequence[Sequence[int]]) -> None:
        """Prepare for a pass over whole prompts, one after the other, each of which fills the rows that own it."""
        spans = (GroupSpan(stop - size, stop, ()) for stop, size in zip(accumulate(lengths), lengths, strict=True))
        self._incoming, self._call = PackedAttention(tuple(spans)), 0
        self._owners = [torch.tensor(rows, device=self.filled.device) for rows in owners]

    def decode(self) -> None:
        """Prepare for a pass over the newest token of every row."""
        self._incoming, self._call = None, 0
        self._hidden = (self._places[: self.width] > self.filled[:, None])[:, None, None]

    def advance(self) -> None:
        """Count one more token in every row, after a ``decode`` pass. A row that nobody reads any more stays inside."""
        self.filled.add_(1).clamp_(max=self.longest - 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if self._call == len(self._layers):
            shapes = ((self.rows, len(key), self.longest, tensor.shape[-1]) for tensor in (key, value))
            # Zeros, not empty memory: masked places have weight zero, and zero times NaN would be NaN.
            keys, values = (tensor.new_zeros(shape) for tensor, shape in zip((key, value), shapes, strict=True))
            self._layers.append((keys, values))
        layer = self._layers[self._call]
        self._call += 1
        if self._incoming is None:
            return self._decode(layer, query, key, value, scale)
        for span, rows in zip(self._incoming.spans, self._owners, strict=True):
            for tensor, new in zip(layer, (key, value), strict=True):
                tensor[rows, :, : span.stop - span.start] = new[:, span.start : span.stop].to(tensor.dtype)
        return self._incoming.attend(query, key, value, scale)

    def _decode(self, layer: tuple[Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return [B, K, g, D] for query [K, g, B, D], key and value [K, B, D]."""
        for tensor, new in zip(layer, (key, value), strict=True):
            tensor[self._all_rows, :, self.filled] = new.transpose(0, 1).to(tensor.dtype)
        keys, values = (tensor[:, :, : self.width].flatten(0, 1) for tensor in layer)  # [B K, W, D]
        heads, group = query.shape[:2]
        queries = (query.permute(2, 0, 1, 3) * scale).flatten(0, 1).to(keys.dtype)  # [B K, g, D]
        scores = torch.bmm(queries, keys.mT).view(self.rows, heads, group, -1)
        assert self._hidden is not None
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.to(wide).masked_fill_(self._hidden, float("-inf")).softmax(-1).to(values.dtype)
        return torch.bmm(weights.flatten(0, 1), values).view(self.rows, heads, group, -1)
