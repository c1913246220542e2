"""A frozen model that caches the log-probabilities of completions it has scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.protocols import LanguageModel, Releasable
from burnish.types import Completion, Prompt

if TYPE_CHECKING:
    pass


class CachedReference:
    """A frozen model that remembers the completions it was asked about.

    A reward and the KL term often ask the reference about the same samples; the second question costs nothing. A sample
    is known by the object it is, not by its tokens: an equal one of another step is asked about anew, among that step's
    companions, so that every step's last bits are its own and a resumed run's are those of a run never stopped.
    """

    def __init__(self, language_model: LanguageModel, *, capacity: int = 4096) -> None:
        self._inner = language_model
        self._capacity = capacity
        # The completion is kept beside its answer: as long as it lives, no other object has its id.
        self._known: dict[tuple[int, float], tuple[Completion, Tensor]] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        return self._inner.encode(text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        return self._inner.encode_prompt(prompt)

    def release(self) -> None:
        """Lets go of the model's weights where it can read them again."""
        if isinstance(self._inner, Releasable):
            self._inner.release()

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        if not completions:
            return torch.zeros(0)
        keys = [(id(completion), temperature) for completion in completions]
        missing = {key: completion for key, completion in zip(keys, completions, strict=True) if key not in self._known}
        if missing:
            found = self._inner.token_logprobs(list(missing.values()), temperature)
            lengths = [len(completion.token_ids) for completion in missing.values()]
            for (key, completion), logprobs in zip(missing.items(), torch.split(found, lengths), strict=True):
                self._known[key] = (completion, logprobs)
        answer = torch.cat([self._known[key][1] for key in keys])
        for oldest in list(self._known)[: max(0, len(self._known) - self._capacity)]:
            del self._known[oldest]
        return answer
