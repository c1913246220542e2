"""How long a regular expression could take on a text: counted before it is used, since text from a model may be hostile."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable
from typing import Any

from burnish.errors import InputError

MOST_WAYS = 10_000_000
"""Ways of matching that a pattern may have on the longest text. A million take some hundredths of a second."""


def anchored(pattern: str) -> bool:
    """Whether every way of matching begins at a text's beginning. Raises re.error where it is no pattern."""
    parsed = importlib.import_module("re._parser").parse(pattern)
    first = parsed[0] if len(parsed) else None
    return (
        first is not None and str(first[1]) in ("AT_BEGINNING", "AT_BEGINNING_STRING") and not parsed.state.flags & re.M
    )


def ways(pattern: str, longest: int) -> float:
    """A bound on how many ways the pattern can be tried on a text of so many characters, from one place on.

    A sequence has the product of its parts' ways, an alternative their sum, and a repeat the sum, over the times that it
    may repeat, of its body's ways to that power.

    Raises:
        re.error: no pattern.
        InputError: something in it that this count does not know.
    """
    # What `re` itself reads patterns with; it has no public name since Python 3.11.
    return _ways_of(importlib.import_module("re._parser").parse(pattern), longest)


def _ways_of(parsed: Iterable[tuple[Any, Any]], longest: int) -> float:
    total = 1.0
    for operation, given in parsed:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = given
            total *= _repeated(_ways_of(body, longest), min(int(least), longest), min(int(most), longest))
        elif name == "SUBPATTERN":
            total *= _ways_of(given[-1], longest)
        elif name in ("ASSERT", "ASSERT_NOT"):
            total *= _ways_of(given[1], longest)
        elif name == "ATOMIC_GROUP":
            total *= _ways_of(given, longest)
        elif name == "BRANCH":
            total *= sum(_ways_of(branch, longest) for branch in given[1])
        elif name not in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "CATEGORY", "GROUPREF"):
            raise InputError(f"regex: a pattern with {name} is not supported: write it without")
    return total


def _repeated(once: float, least: int, most: int) -> float:
    if once == 1.0:
        return float(most - least + 1)
    # The last addend alone decides whether it is too many; more than that is not needed, and would overflow.
    return math.inf if most * math.log(once) > 300 else sum(once**times for times in range(least, most + 1))
