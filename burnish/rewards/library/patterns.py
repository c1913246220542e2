"""Regular expressions with a time limit, since the text that they are matched against comes from a model.

The package ``regex`` matches as ``re`` does, look-arounds and back-references included, and stops when its time is up.
A linear-time engine (google-re2) would need no limit, but has neither of the two and takes only ASCII for letters.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from math import prod
from typing import Any

from burnish.errors import InputError

SECONDS = 1.0
"""Processor time that all patterns of one reward may take on one text."""
MOST_REPEATS = 1_000_000
"""Product of the counts {n} in a pattern: ``regex`` writes them out when it compiles, and would fill the memory."""
_COUNT = re.compile(r"\{(\d+)")


@lru_cache(maxsize=128)
def compiled(pattern: str, where: str) -> Any:
    """Compile a pattern.

    Args:
        pattern: a regular expression.
        where: beginning of the error message.

    Raises:
        InputError: it is not a regular expression, or repeats something too often.
    """
    import regex

    if prod(max(1, int(count)) for count in _COUNT.findall(pattern)) > MOST_REPEATS:
        raise InputError(f"{where}{pattern!r} repeats more than {MOST_REPEATS:,} times: lower the counts in braces")
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError, ValueError) as error:
        raise InputError(f"{where}{pattern!r} is not a regular expression: {error}") from error


class TimeLimit:
    """Processor time for the patterns that are matched against one text."""

    def __init__(self) -> None:
        self._end = time.process_time() + SECONDS

    @property
    def left(self) -> float:
        """Seconds left. Raises TimeoutError if there are none."""
        seconds = self._end - time.process_time()
        if seconds <= 0:
            raise TimeoutError
        return seconds
