"""Readings of a text: the part of it that is the answer."""

from __future__ import annotations

import re

from burnish.errors import InputError
from burnish.registry import nearest
from burnish.rewards.library.quantities import CURRENCIES, DECIMAL, UNITS, Quantity, read_quantity

ANSWER_KINDS = ("whole", "first_line", "last_line", "last_number", "tag", "boxed")
LONGEST_ANSWER = 1000
"""Characters; a longer answer is wrong. The time of some verifiers grows with the square of the length."""
LONGEST_KEY = 60
"""Characters around a number in which the key of an object is looked for."""

_BOX = re.compile(r"\\f?box(?:ed)?\s*")
_MINUS = "\u2212\u2013"
_RUNNING = re.compile(
    rf"(?:(?:US\$|[$€£¥₹])\s?)?[-+{_MINUS}]?(?:US\$|[$€£¥₹])?"
    rf"(?:(?:\d+\s?)?\\[dtc]?frac\s*(?:\{{\s*[-+]?[\d.,]*\d\s*\}}\s*\{{\s*[\d.,]*\d\s*\}}|\d\s*\d)"
    rf"|(?:\d+\s+)?\d+/\d+(?![/\d])|(?:\d+\s?)?[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]|10\s*(?:\^|\*\*)\s*\{{?[-+]?\d+\}}?"
    rf"|{DECIMAL}(?:[eE][-+]?\d+|\s*(?:x|×|\\times|\\cdot|·)\s*10\s*(?:\^\s*\{{?[-+{_MINUS}]?\d+\}}?|[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?)"
)
_PART_OF_WORD = re.compile(r"(?:[A-Za-z_]|[\^_]\{?[-+]?)$")
"""Before a number that is no answer of its own: ``H2O``, ``cm^2``, ``x_{1}``."""
_WITHIN = re.compile(
    rf"(?:\\(?!f?box|text|math|left)[A-Za-z]+\s*[{{(]|\}}\{{|[\d)\]}}]\s*[-+{_MINUS}*/×÷:·]\s*|\\(?:times|cdot|div|pm|mp)\s*"
    r"|\d[.,:/]|[√±]|\d\s+(?:or|to|and)\s+)$"
)
"""Before a number within an expression, a date or a time."""
# Before "\0" and after it: "5-3", "1 000" and "1.2.3" are no numbers that end there.
_IN_KEY = re.compile(r"[{,]\s*[\"'][^\"'\n]*\0[^\"'\n]*[\"']\s*:")
"""A number, replaced by "\\0", within the key of an object, as of JSON."""
_CUT = re.compile(rf"[\d)\]}}]\s*\0[-+{_MINUS}]|(?<!\d)\d{{1,3}} \0\d{{3}}(?!\d)|\d\0\.")
_GOES_ON = re.compile(
    rf"\s*(?:[\^π√]|\\(?:sqrt|pi|times|cdot|div|d?frac|pm|mp)|[+*/×÷{_MINUS}]\s*(?:[\d(\\]|[a-z]\b)|-\s*[\d(\\])"
    r"|[:/.,]\d|!\s*(?![\s\"'*)]|$)"
)
"""After a number that an expression continues."""
_SCALE = re.compile(r"\s?(?:\\?%|percent\b|per cent\b|(?:hundred|thousand|million|billion|trillion)\b)", re.I)
_NAME = re.compile(r"\s?((?:\\text\s*\{\s*)?)([A-Za-z°€£¥₹¢][A-Za-z]*(?:(?:/|\s?per\s)[A-Za-z]+)?(?:\^?\{?[23²³]\}?)?)")


def extract_answer(text: str, kind: str) -> str:
    """Return the answer in a text without surrounding white space; "" if there is none.

    The kind is one of ``ANSWER_KINDS``; "tag" is the text between <answer> and </answer>, "boxed" what ``\\boxed{}``
    holds. The last answer counts if there are several, so that listing guesses wins nothing. Raises InputError for an
    unknown kind.
    """
    if kind == "whole":
        return text.strip()
    if kind in ("first_line", "last_line"):
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        return lines[0 if kind == "first_line" else -1].strip()
    if kind == "last_number":
        match = _last_number(text)
        return _signed(text, match) if match else ""
    if kind == "tag":
        # Not a regular expression: its time would grow with the square of the number of opening tags.
        blocks = [block.partition("<answer>")[2] for block in text.split("</answer>")[:-1] if "<answer>" in block]
        return blocks[-1].strip() if blocks else ""
    if kind == "boxed":
        return last_box(text) or ""
    check_kind(kind)
    raise AssertionError(kind)


def check_kind(kind: str) -> None:
    """Raise InputError if a reading is unknown."""
    if kind not in ANSWER_KINDS:
        raise InputError(f"unknown answer = '{kind}'{nearest(kind, ANSWER_KINDS)}; known: {', '.join(ANSWER_KINDS)}")


def reference_answer(reference: str) -> str:
    """Return the answer of a reference: after "####" (as GSM8K writes it), within its last box, or the whole."""
    _, mark, after = reference.rpartition("####")
    if mark:
        return after.strip()
    box = last_box(reference)
    return reference.strip() if box is None else box


def last_box(text: str) -> str | None:
    """Return the content of the last closed ``\\boxed{}``, with nested braces; None if there is none."""
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text[start : start + 1] != "{":
            # TeX boxes the next token alone.
            single = re.match(r"\s*([A-Za-z0-9])(?![A-Za-z0-9])", text[start:])
            if single:
                return single[1]
            continue
        level, index = 0, start
        while index < len(text):
            if text[index] == "\\":
                index += 2
                continue
            level += (text[index] == "{") - (text[index] == "}")
            if level == 0:
                return text[start + 1 : index].strip()
            index += 1
        return ""
    return None


def quantity_in(text: str, kind: str) -> Quantity | None:
    """Return the number that a reading of a text is; None if it is not one, or only a part of an expression."""
    if kind != "last_number":
        return read_quantity(extract_answer(text, kind))
    if whole := read_quantity(text):
        return whole
    match = _last_number(text)
    if match is None or _GOES_ON.match(text, match.end()):
        return None
    before = text[max(0, match.start() - 40) : match.start()]
    if _WITHIN.search(before) or _CUT.search(f"{before}\0{match.group()[:4]}"):
        return None
    end = match.end()
    scale = _SCALE.match(text, end)
    end = scale.end() if scale else end
    number = text[match.start() : end].strip()
    if number.startswith("$") and text[end:].lstrip(" .").startswith("$"):
        number = number[1:]  # a formula, not dollars
    name = _NAME.match(text, end)
    if name is None:
        return read_quantity(number)
    unit = name[2]
    known = (
        unit in UNITS or unit.lower() in UNITS or unit in CURRENCIES or re.split(r"[/^²³]|\sper\s", unit)[0] in UNITS
    )
    if known and not (unit == "in" and re.match(r"\s+\w", text[name.end() :])):
        return read_quantity(f"{number} {unit.replace('{', '').replace('}', '')}") or read_quantity(number)
    # The letters of "5x", "2nd" or "5k" belong to the number.
    attached = text[end : end + 1].isascii() and text[end : end + 1].isalpha() and not scale
    return None if attached else read_quantity(number)


def _last_number(text: str) -> re.Match[str] | None:
    for match in reversed(list(_RUNNING.finditer(text))):
        before, after = text[max(0, match.start() - LONGEST_KEY) : match.start()], text[match.end() :][:LONGEST_KEY]
        if not _PART_OF_WORD.search(before[-4:]) and not _IN_KEY.search(f"{before}\0{after}"):
            return match
    return None


def _signed(text: str, match: re.Match[str]) -> str:
    """Return a number of the text without separators and currency; its minus is a sign, or that of "5-3"."""
    number = re.sub(r"[,\s$€£¥₹]|US", "", match.group()) if " " not in match.group().strip() else match.group()
    number = re.sub(f"[{_MINUS}]", "-", number.strip())
    before = text[match.start() - 1] if match.start() else ""
    return number[1:] if number[0] in "+-" and (before.isalnum() or before == ")") else number.removeprefix("+")
