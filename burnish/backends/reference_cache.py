"""Cache of the log-probabilities that a frozen model computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.protocols import LanguageModel, Releasable
from burnish.types import Completion, Prompt


class CachedReference:
    """A frozen model with a cache, since a reward and the KL term often need the same log-probabilities.

    The key is the completion object, not its tokens: an equal completion of another step is computed again in that
    step's batch, so a resumed run has the same bits as an uninterrupted one.
    """

    def __init__(self, language_model: LanguageModel, *, capacity: int = 4096) -> None:
        self._inner = language_model
        self._capacity = capacity
        # The completion is stored with its result: as long as it lives, no other object has its id.
        self._known: dict[tuple[int, float], tuple[Completion, Tensor]] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        return self._inner.encode(text)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        return self._inner.encode_prompt(prompt)

    def release(self) -> None:
        """Free the model's weights if it can load them again."""
        if isinstance(self._inner, Releasable):
            self._inner.release()

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        if not completions:
            return torch.zeros(0)
        keys = [(id(completion), temperature) for completion in completions]
        missing = {key: completion for key, completion in zip(keys, completions, strict=True) if key not in self._known}
        if missing:
            computed = self._inner.token_logprobs(list(missing.values()), temperature)
            lengths = [len(completion.token_ids) for completion in missing.values()]
            for (key, completion), part in zip(missing.items(), torch.split(computed, lengths), strict=True):
                self._known[key] = (completion, part)
        logprobs = torch.cat([self._known[key][1] for key in keys])
        for oldest in list(self._known)[: max(0, len(self._known) - self._capacity)]:
            del self._known[oldest]
        return logprobs
