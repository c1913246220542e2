"""Reuse of the sampling forward pass in the training forward pass.

Problem: until the weights change, training multiplies the same hidden states by the same weights as sampling did.

Idea: the sampler stores the outputs of its linear layers, token by token. The training pass looks them up instead of
computing them; everything else runs as usual. With all outputs stored, a training step saves a third of its matrix
products, or half of them if only adapters are trained.

Memory: a stored number saves as many multiplications as the weight has inputs. Where memory runs out, the weights with
the fewest inputs are therefore given up first; in a Llama those with the most (the down-projections) are a quarter of
the work and a ninth of the numbers.

Layout: each weight has a buffer [capacity, out]. A slot is a row index, common to all buffers, of one token. Buffers
grow with the tokens of a step, and never beyond the limit in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from burnish.types import Completion

Lookup = Callable[[Tensor, Tensor | None], Tensor | None]
"""(weight [out, in], inputs [T, in]) -> stored output [T, out], or None if it is not stored.

The adapters' part is subtracted; without inputs it is kept.
"""

GROWTH = 1.25
"""How many times as many tokens there is room for when layers are given up, so that this happens seldom."""
FINGERPRINT = 16
"""Elements per weight that detect a change; an optimizer step changes all of them."""


@dataclass(slots=True, eq=False)
class LayerOutputs:
    """Stored outputs of one linear layer.

    Attributes:
        width, inputs: output features, and input features: the multiplications that each stored number saves.
        adapters: maps inputs [T, in] to the adapters' contribution to the output [T, out]; None without adapters.
        buffer: [capacity, width], float32; None if this layer is not stored. It is reused in every step, because
            touching fresh memory takes as long as the copy itself.
        filled: number of complete slots since the last ``clear``; -1 if some outputs are missing.
        slots: slots of the tokens that are run next; None if they are not stored.
    """

    width: int
    inputs: int
    adapters: Callable[[Tensor], Tensor] | None
    buffer: Tensor | None = None
    filled: int = 0
    slots: slice | None = None

    @property
    def bytes(self) -> int:
        return self.width * torch.float32.itemsize

    def add(self, output: Tensor) -> None:
        """Store an output [..., T, width] in the current slots."""
        if self.slots is None or self.buffer is None:
            return
        rows = output.flatten(0, -2)
        # A layer that runs twice per pass, or on some of the tokens only (an expert), cannot be stored.
        if self.filled != self.slots.start or len(rows) != self.slots.stop - self.slots.start:
            self.filled = -1
            return
        self.buffer[self.slots] = rows
        self.filled = self.slots.stop


class ForwardCache:
    """Outputs of linear layers by weight and token. A sampler writes them; ``lookup`` reads them.

    Layers are given up when their outputs would exceed ``max_bytes``, until one is left. Its tokens beyond the limit are
    not stored.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._layers: dict[int, LayerOutputs] = {}
        self._stored: list[LayerOutputs] = []
        """Layers that are stored, those that save most per byte first."""
        self._weights: list[Tensor] = []
        self._capacity = self._most = 0
        """Tokens that the buffers have room for, and that there may be."""
        self.clear()

    def clear(self) -> None:
        """Forget all tokens, but keep the buffers."""
        self._full = False
        self._tokens = 0
        self._fingerprint: Tensor | None = None
        """Some elements of each weight when the first token was run."""
        # Storing the completion itself keeps its id unique.
        self._slots: dict[int, tuple[Completion, Sequence[int], Sequence[int]]] = {}
        for layer in self._layers.values():
            layer.filled, layer.slots = 0, None

    def layer_outputs(
        self, weight: Tensor, adapters: Callable[[Tensor], Tensor] | None = None, parts: Sequence[Tensor] = ()
    ) -> LayerOutputs:
        """Return the storage for a linear layer, by the identity of its weight [out, in].

        ``adapters`` are as in ``LayerOutputs``; ``parts`` are further tensors that the output depends on.
        """
        if id(weight) not in self._layers:
            self._layers[id(weight)] = LayerOutputs(weight.shape[0], weight.shape[1], adapters)
            self._weights += [weight, *parts]
        return self._layers[id(weight)]

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token of the layers that are stored."""
        return sum(layer.bytes for layer in self._stored)

    @property
    def used_bytes(self) -> int:
        """Bytes in use."""
        return self._tokens * self.bytes_per_token

    def reserve(self, tokens: int) -> None:
        """Prepare for up to ``tokens`` more tokens; buffers have room for them, as far as all layers fit the limit."""
        if self._tokens == 0:
            self._stored = sorted(self._layers.values(), key=lambda layer: -layer.inputs)
        self._most = self._tokens + tokens
        if self._stored:
            self._grow(min(self._most, self.max_bytes // self.bytes_per_token))

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        for layer in self._stored:
            if layer.buffer is None or len(layer.buffer) < capacity:
                grown = torch.empty(capacity, layer.width)
                if layer.buffer is not None:
                    grown[: self._tokens] = layer.buffer[: self._tokens]
                layer.buffer = grown

    def _make_room(self, tokens: int) -> None:
        """Make room for ``tokens`` tokens in all; if they do not fit, give up layers until some more would, but one."""
        wanted = min(self._most, int(tokens * GROWTH))
        if tokens * self.bytes_per_token > self.max_bytes:
            while len(self._stored) > 1 and wanted * self.bytes_per_token > self.max_bytes:
                self._stored.pop().buffer = None
        self._grow(min(wanted, self.max_bytes // self.bytes_per_token))

    def release(self) -> None:
        """Free the buffers; the next ``reserve`` makes new ones."""
        self.clear()
        for layer in self._layers.values():
            layer.buffer = None

    def allocate(self, tokens: int) -> range | None:
        """Return the slots of the ``tokens`` tokens that are run next, or None if they do not fit."""
        if self._stored and self._tokens + tokens > self._capacity:
            self._make_room(self._tokens + tokens)
        self._full = self._full or not self._stored or self._tokens + tokens > self._capacity
        slots = None if self._full else range(self._tokens, self._tokens + tokens)
        if slots is not None:
            self._tokens = slots.stop
            if self._fingerprint is None:
                self._fingerprint = weight_elements(self._weights)
        for layer in self._layers.values():
            layer.slots = None if slots is None else slice(slots.start, slots.stop)
        return slots

    def set_slots(self, completion: Completion, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Record the slots of a completion's prompt and of all its tokens but the last, which is never run."""
        self._slots[id(completion)] = completion, prompt, answer

    def get_slots(self, completion: Completion) -> tuple[Sequence[int], Sequence[int]] | None:
        """Return the slots of a completion's prompt and tokens, or None if they are not all stored."""
        entry = self._slots.get(id(completion))
        return None if entry is None else entry[1:]

    def lookup(self, slots: Sequence[int]) -> Lookup | None:
        """Return a lookup of the outputs of the tokens in these slots; None if a weight has changed."""
        if self._fingerprint is None or not torch.equal(self._fingerprint, weight_elements(self._weights)):
            return None
        return partial(self._find, torch.tensor(slots))

    def _find(self, slots: Tensor, weight: Tensor, rows: Tensor | None) -> Tensor | None:
        layer = self._layers.get(id(weight))
        if layer is None or layer.buffer is None or layer.filled != self._tokens:
            return None
        output = layer.buffer.index_select(0, slots)
        return output if layer.adapters is None or rows is None else output.sub_(layer.adapters(rows))


@torch.no_grad()
def weight_elements(weights: Sequence[Tensor]) -> Tensor:
    """Return some elements of each weight. Autograd's version counters do not see fused optimizers."""
    return torch.cat([weight.reshape(-1)[:: max(1, weight.numel() // FINGERPRINT)][:FINGERPRINT] for weight in weights])
