"""Text of a completion while it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""Decoded form of a character whose last bytes are missing."""


class TextStream:
    """Decoder of a growing list of tokens, which passes text on once it can no longer change.

    It holds back an incomplete character at the end of the text, and what may become the beginning of a stop text.

    Args:
        decode: returns the text of token ids.
        on_text: called after each token with the new text, which may be empty.
        stops: texts that end a completion and are cut off.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], on_text: Callable[[str], None], stops: Sequence[str] = ()
    ) -> None:
        self._decode, self._on_text, self._stops = decode, on_text, stops
        self._sent = ""

    def update(self, token_ids: Sequence[int]) -> None:
        """Decode the tokens so far and pass the new text on."""
        text = self._decode(token_ids).rstrip(UNFINISHED)
        text = text[: self._settled(text)]
        new = text[len(self._sent) :] if text.startswith(self._sent) else ""
        self._sent += new
        self._on_text(new)

    def finish(self, text: str) -> None:
        """Pass on the rest of the completion's final text."""
        # Decoding a longer list may change earlier text (a tokenizer that cleans up blanks); then the whole is repeated.
        self._on_text(text[len(self._sent) :] if text.startswith(self._sent) else f"\n{text}")

    def _settled(self, text: str) -> int:
        """Return where the text's first stop text begins, or its end begins one; else its length."""
        starts = [text.find(stop) for stop in self._stops if stop in text]
        lengths = (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return min([*starts, len(text) - max(lengths, default=0)])
