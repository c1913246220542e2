"""The frozen reference of a fully trained policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from burnish.types import Completion, Prompt


class ReloadedReference:
    """The policy before training, a ``CausalModel`` that is loaded on first use; ``like`` has the same tokenizer."""

    def __init__(self, load: Callable[[], Any], like: Any) -> None:
        self._load, self._like = load, like
        self._loaded: Any = None

    @property
    def loaded(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
            self._loaded.model.requires_grad_(False)
        return self._loaded

    def release(self) -> None:
        """Free the memory of the model."""
        self._loaded = None

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        ids: tuple[int, ...] = self._like.encode(text, begins=begins)
        return ids

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        ids: tuple[int, ...] = self._like.encode_prompt(prompt)
        return ids

    def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> Tensor:
        logprobs: Tensor = self.loaded.token_logprobs(completions, temperature)
        return logprobs
