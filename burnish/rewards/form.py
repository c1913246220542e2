"""Rewards for the form of a text, whatever it says: its length, a pattern, JSON."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.diversity import words
from burnish.rewards.registry import checked_by

UNITS = ("words", "characters")
MOST_WAYS = 10_000_000
"""Ways of matching that a pattern may have on the longest text. A million take some hundredths of a second."""

KINDS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
    "any": lambda value: True,
}
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.S | re.I)


# Length -------------------------------------------------------------------------------------------------------------


def _check_length_band(*, low: int, high: int, unit: str) -> None:
    if unit not in UNITS:
        raise InputError(f"length_band: unknown unit = '{unit}'{nearest(unit, UNITS)}; known: {', '.join(UNITS)}")
    if not (0 <= low <= high and high >= 1):
        raise InputError(f"length_band: low = {low}, high = {high}: must be 0 <= low <= high, and high at least 1")


@checked_by(_check_length_band)
def length_band(text: str, *, low: int = 20, high: int = 60, unit: str = "words") -> float:
    """1 for a length from low to high, falling in a straight line to 0 at no length and at twice high; in [0, 1].

    Words are runs of letters and digits, and every Chinese or Japanese character is one; characters are counted without
    white space. An empty text scores 0 where low is above 0. Fails by: caring about nothing but length, so that filler
    scores in full.

    Args:
        text: what was sampled.
        low, high: the band, both ends within.
        unit: "words" or "characters".

    Raises:
        InputError: no such unit, or no such band.
    """
    _check_length_band(low=low, high=high, unit=unit)
    if unit == "words":
        length = sum(word[0].isalnum() for word in words(text))
    else:
        length = sum(not character.isspace() for character in text)
    if length < low:
        return length / low
    return 1.0 if length <= high else max(0.0, (2 * high - length) / high)


# Patterns -----------------------------------------------------------------------------------------------------------


def _check_regex(*, pattern: str, longest: int) -> None:
    _compiled(pattern, longest)


@checked_by(_check_regex)
def regex(text: str, *, pattern: str = "", longest: int = 1000) -> float:
    """1.0 where the whole text, white space at either end aside, matches the pattern, else 0.0.

    The pattern is one of Python's. Matching tries one way after another, so a pattern with too many ways on a text of
    ``longest`` characters is refused: nearly every repeat within a repeat, as in ``(a+)+``, and three or more ``.*`` on
    long texts. This count is a bound, so it refuses some patterns that would be fast; and the speed of a pattern that it
    lets pass is not measured. Fails by: saying nothing of what is nearly right, and nothing of meaning.

    Args:
        text: what was sampled.
        pattern: required; write ``(?s)`` before it where ``.`` shall match a line's end too.
        longest: characters; a longer text scores 0.

    Raises:
        InputError: the pattern is missing, is none, or could take too long.
    """
    compiled = _compiled(pattern, longest)
    bare = text.strip()
    return float(len(bare) <= longest and compiled.fullmatch(bare) is not None)


@lru_cache(maxsize=32)
def _compiled(pattern: str, longest: int) -> re.Pattern[str]:
    if not pattern:
        raise InputError("regex: give it a pattern, for instance pattern = '[0-9]+'")
    if longest < 1:
        raise InputError(f"regex: longest = {longest}: must be at least 1")
    try:
        compiled = re.compile(pattern)
        found = ways(pattern, longest)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"regex: pattern = {pattern!r} is no pattern: {error}") from error
    if found > MOST_WAYS:
        raise InputError(
            f"regex: pattern = {pattern!r} has more than {MOST_WAYS:,} ways to match a text of {longest} characters, which "
            "could take for ever: take repeats out of repeats, make them fewer, or lower longest"
        )
    return compiled


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


# JSON ---------------------------------------------------------------------------------------------------------------


def _check_json_format(*, required: Mapping[str, Any], extra: bool, fenced: bool) -> None:
    for key, kind in required.items():
        if not isinstance(kind, str) or kind not in KINDS:
            near = nearest(kind, KINDS) if isinstance(kind, str) else ""
            raise InputError(f"json_format: required.{key} = {kind!r}{near}: known types are {', '.join(KINDS)}")


@checked_by(_check_json_format)
def json_format(
    text: str,
    *,
    required: dict[str, str] = {},  # noqa: B006 - read, never changed; a default is how an option's kind is known
    extra: bool = True,
    fenced: bool = False,
) -> float:
    """How far a text is a JSON object with the required keys, in [0, 1]: 0 where it is none.

    With k required keys, r of them present with a value of the right type, ``(1 + r) / (1 + k)``. Strict: no text around
    it, no NaN, no key twice. Fails by: not looking at values, so that empty texts and zeros under the right keys score
    in full, and by paying ``1 / (1 + k)`` for ``{}``.

    Args:
        text: what was sampled; white space at either end is left out.
        required: key -> "string", "integer" (written without a fraction), "number", "boolean", "array", "object", "null"
            or "any".
        extra: whether other keys may stand beside them; where not, an object with one scores 0.
        fenced: whether the text may also be a Markdown code block that holds the JSON and nothing else.

    Raises:
        InputError: an unknown type.
    """
    _check_json_format(required=required, extra=extra, fenced=fenced)
    bare = text.strip()
    if fenced and (inside := _FENCE.fullmatch(bare)):
        bare = inside[1]
    try:
        found = json.loads(bare, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        # Also for a number of thousands of digits, and brackets nested thousands deep.
        return 0.0
    if not isinstance(found, dict) or (not extra and found.keys() - required.keys()):
        return 0.0
    right = sum(key in found and KINDS[kind](found[key]) for key, kind in required.items())
    return (1 + right) / (1 + len(required))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
