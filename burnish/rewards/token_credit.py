"""Credit within a text: what a reward says of a completion's beginnings, and what its tokens earned by that.

A beginning is worth what the reward says of it, F; the empty one too. A token that ends a beginning earns what F grew by
since the one before. Nothing here may look ahead: what a beginning is worth and whether it ends a sentence are functions of
its own tokens, or the gradient would be biased.
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
"""What is decoded of a character of which some bytes are still missing: not yet written."""


def beginnings(completion: Completion, credit: Credit, decode: Decode) -> dict[int, str]:
    """Number of tokens -> text, of the proper beginnings that earn something: after every token, or where a sentence ends.

    A full stop ends a sentence whatever comes next (3.14 has one, too), since that is not known yet. Several marks in a
    row are one end, which the first of them makes. A token with an end inside ends the sentence after itself.
    """
    found: dict[int, str] = {}
    ends = 0
    for length in range(1, len(completion.token_ids)):
        text = decode(completion.token_ids[:length]).rstrip(UNFINISHED)
        if credit == "sentence":
            before, ends = ends, len(SENTENCE_END.findall(text))
            if ends <= before:
                continue
        found[length] = text
    return found


def earned(
    completions: Sequence[Completion],
    values: np.ndarray,
    credit: Credit,
    decode: Decode,
    ask: Callable[[Sequence[Completion]], np.ndarray],
) -> list[np.ndarray]:
    """What each token of N completions earned, [|o_i|] each; a completion's add up to its value less that of no text.

    Args:
        values: [N], of the whole completions, which their last tokens reach.
        ask: the reward, for all beginnings at once; equal beginnings of a prompt's completions are one.
    """
    ways = [beginnings(completion, credit, decode) for completion in completions]
    asked: dict[tuple[str, tuple[int, ...]], Completion] = {}
    for completion, way in zip(completions, ways, strict=True):
        for length, text in {0: "", **way}.items():
            key = completion.prompt.id, completion.token_ids[:length]
            asked.setdefault(key, _begun(completion, length, text))
    worth = dict(zip(asked, ask(list(asked.values())).tolist(), strict=True))
    found = []
    for completion, way, value in zip(completions, ways, values.tolist(), strict=True):
        tokens = completion.token_ids
        row = np.zeros(len(tokens))
        if tokens:
            reached = [worth[completion.prompt.id, tokens[:length]] for length in (0, *way)]
            row[[*(length - 1 for length in way), len(tokens) - 1]] = np.diff([*reached, value])
        found.append(row)
    return found


def _begun(completion: Completion, length: int, text: str) -> Completion:
    return replace(
        completion,
        token_ids=completion.token_ids[:length],
        text=text,
        sampler_logprobs=completion.sampler_logprobs[:length],
        finish_reason="length",
    )
