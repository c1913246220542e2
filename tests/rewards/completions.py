"""Completions for the tests of rewards, and texts that no reward may fail on."""

from __future__ import annotations

from burnish.types import Completion, FinishReason, Message, Prompt

ODD_TEXTS = [
    "",
    " \n\t",
    "½ ² ①",
    "\x00\ufffd",
    "\ud83d",
    "naïve café",
    "😀👩‍👩‍👧🇨🇭",
    "?!...;;",
    "a" * 5000,
    "la " * 3000,
    "我爱你。" * 50,
    "《》",
    "ＡＢ１２",
]


def answer(
    text: str = "x",
    reference: str | None = "true",
    prompt: str = "",
    *,
    id: str = "p",
    tokens: tuple[int, ...] = (1,),
    keywords: object = None,
    finish: FinishReason = "stop",
    chat: bool = False,
    alternatives: tuple[str, ...] = (),
    position: str = "",
) -> Completion:
    """Return a completion of the prompt ``id`` with a reference."""
    metadata = {} if keywords is None else {"keywords": keywords}
    messages = (Message("user", prompt),) if chat else ()
    return Completion(
        Prompt(id, prompt, reference, metadata, messages, alternatives, position),
        (0,),
        tokens,
        text,
        (0.0,) * len(tokens),
        finish,
    )
