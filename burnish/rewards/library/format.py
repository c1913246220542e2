"""Rewards for the form of a text: its length, a pattern, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.library.schema import SECONDS, compiled, error_counter
from burnish.rewards.registry import check_choice, reward
from burnish.text import lexical_words

UNITS = ("words", "characters")
JSON_TYPES: Mapping[str, Callable[[Any], bool]] = {
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


def _check_length_band(*, low: int, high: int, unit: str) -> None:
    check_choice("length_band", "unit", unit, UNITS)
    if not (0 <= low <= high and high >= 1):
        raise InputError(f"length_band: low = {low}, high = {high}: must be 0 <= low <= high, and high at least 1")


@reward(check_options=_check_length_band)
def length_band(text: str, *, low: int = 20, high: int = 60, unit: str = "words") -> float:
    """1 for a length from ``low`` to ``high``, falling linearly to 0 at length 0 and at twice ``high``; in [0, 1].

    Words are runs of letters and digits, and every Chinese or Japanese character is one; characters are counted without
    white space. An empty text scores 0 if ``low`` is above 0.

    Fails by: ignoring everything but length, so that filler scores in full.

    Args:
        low, high: the band, both ends included.
        unit: "words" or "characters".

    Source: our own, after the soft length limits of RL recipes (such as DAPO, arXiv 2503.14476, section 3.4).
    """
    _check_length_band(low=low, high=high, unit=unit)
    length = len(lexical_words(text) if unit == "words" else "".join(text.split()))
    if length < low:
        return length / low
    return 1.0 if length <= high else max(0.0, (2 * high - length) / high)


def _check_regex(*, pattern: str, longest: int) -> None:
    if not pattern:
        raise InputError("regex: pattern is missing: set it, for instance pattern = '[0-9]+'")
    if longest < 1:
        raise InputError(f"regex: longest = {longest}: must be at least 1")
    compiled(pattern, "regex: pattern = ")


@reward(check_options=_check_regex)
def regex(text: str, *, pattern: str = "", longest: int = 1000) -> float:
    """Whether the whole text matches a pattern, white space at either end aside: 1.0 or 0.0.

    The pattern has Python's syntax (the package ``regex``). A text that takes more than a second of processor time does
    not match: patterns with a repeat inside a repeat, such as ``(a+)+b``, can take exponential time.

    Fails by: giving no credit to what is nearly right, and none to meaning.

    Args:
        pattern: required; begin it with ``(?s)`` if ``.`` should match the end of a line too.
        longest: characters; a longer text scores 0.

    Source: the format rewards of DeepSeek-R1 (arXiv 2501.12948, section 2.2.2) are such patterns.
    """
    _check_regex(pattern=pattern, longest=longest)
    bare = text.strip()
    if len(bare) > longest:
        return 0.0
    try:
        return float(compiled(pattern, "regex: pattern = ").fullmatch(bare, timeout=SECONDS) is not None)
    except TimeoutError:
        return 0.0


def _check_json_format(
    *, required: Mapping[str, Any], extra: bool, fenced: bool, schema: Mapping[str, Any], schema_file: str
) -> None:
    if bool(required) + bool(schema) + bool(schema_file) > 1:
        raise InputError("json_format: required, schema and schema_file exclude one another: keep one of them")
    if not extra and (schema or schema_file):
        raise InputError(
            "json_format: extra = false applies to required: set additionalProperties = false in the schema"
        )
    if schema or schema_file:
        error_counter(schema, schema_file)
    for key, kind in required.items():
        if not isinstance(kind, str) or kind not in JSON_TYPES:
            near = nearest(kind, JSON_TYPES) if isinstance(kind, str) else ""
            raise InputError(f"json_format: required.{key} = {kind!r}{near}: known types are {', '.join(JSON_TYPES)}")


@reward(check_options=_check_json_format)
def json_format(
    text: str,
    *,
    required: dict[str, str] = {},  # noqa: B006 - never changed; an option's type is that of its default
    extra: bool = True,
    fenced: bool = False,
    schema: dict[str, Any] = {},  # noqa: B006 - as above
    schema_file: str = "",
) -> float:
    """How far a text is JSON of the required form, in [0, 1]: 0 if it is not JSON.

    With ``required``, the text must be an object with k keys; r of them with a value of the right type score
    ``(1 + r) / (1 + k)``. With a JSON Schema and e errors, as a validator counts them, it scores ``1 / (1 + e)``. With
    neither, any object scores 1. Strict: no text around the JSON, no NaN, no duplicate keys.

    Fails by: ignoring content, so that empty texts and zeros under the right keys score in full; paying ``1 / (1 + k)``
    for ``{}``; and counting a wrong list of ten items, or a wrong choice of ``anyOf``, as one error.

    Args:
        required: key -> "string", "integer" (written without a fraction), "number", "boolean", "array", "object",
            "null" or "any".
        extra: whether other keys are allowed; if not, an object with one scores 0.
        fenced: whether the text may also be a Markdown code block with only the JSON in it.
        schema: a JSON Schema, as a table. ``format`` is not checked, and no other document is read. A text of more than
            10,000 characters scores 0 (2,000 if the schema has patterns), as does one that takes too long to check.
        schema_file: path of a JSON file with a schema, instead.

    Source: RFC 8259; JSON Schema, draft 2020-12 or the one that ``$schema`` names, by the package jsonschema. The
    scores are our own.
    """
    _check_json_format(required=required, extra=extra, fenced=fenced, schema=schema, schema_file=schema_file)
    bare = text.strip()
    if fenced and (inside := _FENCE.fullmatch(bare)):
        bare = inside[1]
    try:
        value = json.loads(bare, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        # Also raised for a number of thousands of digits, and for brackets nested thousands deep.
        return 0.0
    if schema or schema_file:
        errors = error_counter(schema, schema_file)(bare, value)
        return 0.0 if errors is None else 1.0 / (1 + errors)
    if not isinstance(value, dict) or (not extra and value.keys() - required.keys()):
        return 0.0
    correct = sum(key in value and JSON_TYPES[kind](value[key]) for key, kind in required.items())
    return (1 + correct) / (1 + len(required))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("duplicate key")
    return table
