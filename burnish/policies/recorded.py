"""Sampling has already done the forward pass: its products with the weights, kept for the gradient of the same tokens.

While the weights are what they were when a completion was sampled, the training pass would multiply the same states with the
same weights again. Here each token's results wait instead, and the training pass looks them up; norms, attention and all
else between the products runs as ever, and so does the backward pass. A third of a training step's products are saved, and
half of them where only adapters are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from burnish.types import Completion

Find = Callable[[Tensor, Tensor], Tensor | None]
"""(weight, rows [T, in]) -> the product [T, out] that is known already, or None."""

PRINT = 16
"""Numbers of a weight by which it is known to be unchanged: an optimizer's step moves all of them."""


@dataclass(slots=True)
class Results:
    """What one product gave, in pieces [S, out] as they came.

    Attributes:
        adapters: of rows [T, in], what adapters added to the product with the weight itself; None where there are none.
    """

    adapters: Callable[[Tensor], Tensor] | None
    open: bool = True
    pieces: list[Tensor] = field(default_factory=list)

    def add(self, piece: Tensor) -> None:
        if self.open:
            self.pieces.append(piece.flatten(0, -2))

    def whole(self) -> Tensor:
        """All pieces [tokens, out] in one."""
        if len(self.pieces) > 1:
            self.pieces = [torch.cat(self.pieces)]
        return self.pieces[0]


class Recorded:
    """Results by weight and token. A sampler writes them, ``finder`` reads them.

    Args:
        room: bytes they may take; what comes later is not kept.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._results: dict[int, Results] = {}
        self._weights: list[Tensor] = []
        self._print: Tensor | None = None
        """A few numbers of each weight, as they were when the first token was run."""
        self._bytes = 0
        """Of one token."""
        self._tokens = 0
        # The completion is kept beside its places: as long as it lives, no other object has its id.
        self._places: dict[int, tuple[Completion, Sequence[int], Sequence[int]]] = {}

    def results(
        self, weight: Tensor, adapters: Callable[[Tensor], Tensor] | None = None, parts: Sequence[Tensor] = ()
    ) -> Results:
        """Where a product's results go.

        Args:
            weight: [out, in]; results are looked up by it.
            parts: further tensors that the results depend on.
        """
        if id(weight) not in self._results:
            self._results[id(weight)] = Results(adapters)
            self._bytes += weight.shape[0] * weight.element_size()
            self._weights += [weight, *parts]
        return self._results[id(weight)]

    def claim(self, tokens: int) -> range | None:
        """The places of the tokens that are run next, or None where there is no room any more."""
        if not self._results or (self._tokens + tokens) * self._bytes > self._room:
            self.close()
            self._room = 0
            return None
        if self._print is None:
            self._print = _print(self._weights)
        places = range(self._tokens, self._tokens + tokens)
        self._tokens += tokens
        return places

    def close(self) -> None:
        """Nothing more is kept; what is there stays."""
        for results in self._results.values():
            results.open = False

    def note(self, completion: Completion, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """The places of a completion's prompt and of all its tokens but the last, which is never run."""
        self._places[id(completion)] = completion, prompt, answer

    def places(self, completion: Completion) -> tuple[Sequence[int], Sequence[int]] | None:
        found = self._places.get(id(completion))
        return None if found is None else found[1:]

    def finder(self, places: Sequence[int]) -> Find | None:
        """Looks up the results of the tokens at these places; None where a weight has changed since."""
        if self._print is None or not torch.equal(self._print, _print(self._weights)):
            return None
        return partial(self._find, torch.tensor(places))

    def _find(self, places: Tensor, weight: Tensor, rows: Tensor) -> Tensor | None:
        results = self._results.get(id(weight))
        if results is None or not results.pieces:
            return None
        whole = results.whole()
        if len(whole) != self._tokens:  # a product that a pass makes twice, or not for every token
            return None
        found = whole.index_select(0, places)
        return found if results.adapters is None else found.sub_(results.adapters(rows))


@torch.no_grad()
def _print(weights: Sequence[Tensor]) -> Tensor:
    """Not the versions that autograd counts: fused optimizers move weights without counting."""
    return torch.cat([weight.reshape(-1)[:: max(1, weight.numel() // PRINT)][:PRINT] for weight in weights])
