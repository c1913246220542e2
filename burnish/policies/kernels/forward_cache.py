"""Sampling has already done the forward pass: its products with the weights, kept for the gradient of the same tokens.

While the weights are what they were when a completion was sampled, the training pass would multiply the same states with the
same weights again. Here each token's results wait instead, and the training pass looks them up; norms, attention and all
else between the products runs as ever, and so does the backward pass. With all of them kept, a third of a training step's
products are saved, and half of them where only adapters are trained. A kept number saves as many multiplications as the
weight has inputs, so those with the most inputs, which narrow a block's states, come first: of a Llama they are a quarter of
the work and a ninth of the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from burnish.types import Completion

Lookup = Callable[[Tensor, Tensor], Tensor | None]
"""(weight, rows [T, in]) -> the product [T, out] that is known already, or None."""

FINGERPRINT = 16
"""Numbers of a weight by which it is known to be unchanged: an optimizer's step moves all of them."""


@dataclass(slots=True, eq=False)
class CachedOutputs:
    """What one product gave.

    Attributes:
        width: numbers of one token.
        saved: multiplications that each of them saves.
        adapters: of rows [T, in], what adapters added to the product with the weight itself; None where there are none.
        kept: [capacity, width], allocated when more is needed than ever before and written anew in every step: fresh
            memory would cost as much time again as the copy does; None where there is no room for this weight's.
        filled: tokens whose results are all there, since the last ``clear``; -1 where some are not.
        place: where the next tokens go; None while nothing is kept.
    """

    width: int
    saved: int
    adapters: Callable[[Tensor], Tensor] | None
    kept: Tensor | None = None
    filled: int = 0
    place: slice | None = None

    @property
    def bytes(self) -> int:
        return self.width * torch.float32.itemsize

    def add(self, piece: Tensor) -> None:
        if self.place is None or self.kept is None:
            return
        rows = piece.flatten(0, -2)
        # A product that a pass makes twice, or of some tokens alone as an expert does, is of no use.
        if self.filled != self.place.start or len(rows) != self.place.stop - self.place.start:
            self.filled = -1
            return
        self.kept[self.place] = rows
        self.filled = self.place.stop


class ForwardCache:
    """CachedOutputs by weight and token. A sampler writes them, ``finder`` reads them.

    Args:
        room: bytes they may take. Which weights' results are kept follows from it and from the tokens that are expected
            first; where more tokens come, the last ones are not kept.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._results: dict[int, CachedOutputs] = {}
        self._chosen: list[CachedOutputs] = []
        self._weights: list[Tensor] = []
        self._capacity = 0
        self.clear()

    def clear(self) -> None:
        """Forgets all tokens, keeps the memory."""
        self._full = False
        self._tokens = 0
        self._fingerprint: Tensor | None = None
        """A few numbers of each weight, as they were when the first token was run."""
        # The completion is kept beside its places: as long as it lives, no other object has its id.
        self._places: dict[int, tuple[Completion, Sequence[int], Sequence[int]]] = {}
        for results in self._results.values():
            results.filled, results.place = 0, None

    def results(
        self, weight: Tensor, adapters: Callable[[Tensor], Tensor] | None = None, parts: Sequence[Tensor] = ()
    ) -> CachedOutputs:
        """Where a product's results go.

        Args:
            weight: [out, in]; results are looked up by it.
            parts: further tensors that the results depend on.
        """
        if id(weight) not in self._results:
            self._results[id(weight)] = CachedOutputs(weight.shape[0], weight.shape[1], adapters)
            self._weights += [weight, *parts]
        return self._results[id(weight)]

    @property
    def bytes_per_token(self) -> int:
        """Of the results that are kept."""
        return sum(results.bytes for results in self._chosen)

    @property
    def size(self) -> int:
        """ByteVocabulary that are in use."""
        return self._tokens * self.bytes_per_token

    def reserve(self, tokens: int) -> None:
        """Makes room for so many more tokens, or for as many as fit."""
        if self._tokens == 0:
            self._choose(tokens)
        capacity = min(self._tokens + tokens, self.room // max(1, self.bytes_per_token))
        if capacity <= self._capacity:
            return
        for results in self._chosen:
            grown = torch.empty(capacity, results.width)
            if results.kept is not None:
                grown[: self._tokens] = results.kept[: self._tokens]
            results.kept = grown
        self._capacity = capacity

    def _choose(self, tokens: int) -> None:
        """The weights whose results of so many tokens fit, those that save most first; one at least."""
        ordered = sorted(self._results.values(), key=lambda results: -results.saved)
        totals = itertools.accumulate(results.bytes for results in ordered)
        chosen = [one for one, total in zip(ordered, totals, strict=True) if total * tokens <= self.room] or ordered[:1]
        if chosen != self._chosen:
            self._chosen, self._capacity = chosen, 0
            for results in ordered:
                results.kept = None

    def claim(self, tokens: int) -> range | None:
        """The places of the tokens that are run next, or None where there is no room any more."""
        self._full = self._full or not self._chosen or self._tokens + tokens > self._capacity
        places = None if self._full else range(self._tokens, self._tokens + tokens)
        if places is not None:
            self._tokens = places.stop
            if self._fingerprint is None:
                self._fingerprint = _fingerprint(self._weights)
        for results in self._results.values():
            results.place = None if places is None else slice(places.start, places.stop)
        return places

    def note(self, completion: Completion, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """The places of a completion's prompt and of all its tokens but the last, which is never run."""
        self._places[id(completion)] = completion, prompt, answer

    def places(self, completion: Completion) -> tuple[Sequence[int], Sequence[int]] | None:
        found = self._places.get(id(completion))
        return None if found is None else found[1:]

    def finder(self, places: Sequence[int]) -> Lookup | None:
        """Looks up the results of the tokens at these places; None where a weight has changed since."""
        if self._fingerprint is None or not torch.equal(self._fingerprint, _fingerprint(self._weights)):
            return None
        return partial(self._find, torch.tensor(places))

    def _find(self, places: Tensor, weight: Tensor, rows: Tensor) -> Tensor | None:
        results = self._results.get(id(weight))
        if results is None or results.kept is None or results.filled != self._tokens:
            return None
        found = results.kept.index_select(0, places)
        return found if results.adapters is None else found.sub_(results.adapters(rows))


@torch.no_grad()
def _fingerprint(weights: Sequence[Tensor]) -> Tensor:
    """Not the versions that autograd counts: fused optimizers move weights without counting."""
    return torch.cat([weight.reshape(-1)[:: max(1, weight.numel() // FINGERPRINT)][:FINGERPRINT] for weight in weights])
