"""Token credit: the reward of a completion's beginnings, and the gain of each token.

Let F be the reward of a beginning of the text, the empty one included. A token that ends a beginning earns the increase
of F since the beginning before. Nothing here may look ahead: the value of a beginning, and whether it ends a sentence,
depend on its own tokens only, or the gradient would be biased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from burnish.text import SENTENCE_END
from burnish.types import Completion

Credit = Literal["completion", "sentence", "token"]

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""

UNFINISHED = "\ufffd"
"""Decoded form of a character whose last bytes are missing; it does not count as written yet."""


def beginnings(completion: Completion, credit: Credit, decode: Decode) -> dict[int, str]:
    """Return number of tokens -> text for the proper beginnings that earn something: after each token or each sentence.

    A full stop ends a sentence whatever follows (as in 3.14), since that is not known yet. Several marks in a row are
    one end, at the first of them. A token with an end inside it ends the sentence after that token.
    """
    texts: dict[int, str] = {}
    ends = 0
    for length in range(1, len(completion.token_ids)):
        text = decode(completion.token_ids[:length]).rstrip(UNFINISHED)
        if credit == "sentence":
            before, ends = ends, len(SENTENCE_END.findall(text))
            if ends <= before:
                continue
        texts[length] = text
    return texts


def token_gains(
    completions: Sequence[Completion],
    values: np.ndarray,
    credit: Credit,
    decode: Decode,
    score: Callable[[Sequence[Completion]], np.ndarray],
) -> list[np.ndarray]:
    """Return what each token of N completions earned, [|o_i|] each. They sum to the value less that of empty text.

    ``values`` [N] are those of the whole completions, reached at their last tokens. ``score`` is the reward, called
    once with all beginnings; equal beginnings of one prompt are scored once.
    """
    texts = [beginnings(completion, credit, decode) for completion in completions]
    prefixes: dict[tuple[str, tuple[int, ...]], Completion] = {}
    for completion, text_by_length in zip(completions, texts, strict=True):
        for length, text in {0: "", **text_by_length}.items():
            key = completion.prompt.id, completion.token_ids[:length]
            prefixes.setdefault(key, _prefix(completion, length, text))
    prefix_values = dict(zip(prefixes, score(list(prefixes.values())).tolist(), strict=True))
    gains = []
    for completion, text_by_length, value in zip(completions, texts, values.tolist(), strict=True):
        tokens = completion.token_ids
        row = np.zeros(len(tokens))
        if tokens:
            reached = [prefix_values[completion.prompt.id, tokens[:length]] for length in (0, *text_by_length)]
            row[[*(length - 1 for length in text_by_length), len(tokens) - 1]] = np.diff([*reached, value])
        gains.append(row)
    return gains


def _prefix(completion: Completion, length: int, text: str) -> Completion:
    return replace(
        completion,
        token_ids=completion.token_ids[:length],
        text=text,
        sampler_logprobs=completion.sampler_logprobs[:length],
        finish_reason="length",
    )
