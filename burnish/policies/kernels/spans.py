"""Positions of texts in a packed sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Positions of a prompt (start, stop) and of the completions behind it in a packed sequence.

    A completion attends to the prompt and causally to itself.
    """

    start: int
    stop: int
    completions: tuple[tuple[int, int], ...]
