"""Numbers in text, read whole: thousands, currency, percent, units, exponents, fractions, LaTeX.

A text is a number only if all of it can be read as one: "1,5" (a decimal comma or a list) and "3/4/2020" are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST_NUMBER = 200
"""Characters; a longer text is not a number."""
LARGEST_EXPONENT = 1000
MOST_LAYERS = 20
"""Delimiters within each other that are taken away, so that the time is linear in a text's length."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_PLAIN = str.maketrans("０１２３４５６７８９．，％－＋\u2212\u2012\u2013\u2215\u2044", "0123456789.,%-+---//")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
CURRENCIES = {
    "$": "dollar", "US$": "dollar", "USD": "dollar", "€": "euro", "EUR": "euro", "£": "pound sterling",
    "GBP": "pound sterling", "¥": "yen", "JPY": "yen", "CNY": "yuan", "RMB": "yuan", "₹": "rupee", "INR": "rupee",
}  # fmt: skip
UNITS: dict[str, tuple[str, Fraction]] = {}
"""Spelling -> what is measured, and the factor to its base unit."""
_TABLE = """
    length: 10000 cm centimeter centimeters centimetre centimetres; 1000000 m meter meters metre metres
    length: 1000 mm millimeter millimeters millimetre millimetres
    length: 1000000000 km kilometer kilometers kilometre kilometres
    length: 25400 in inch inches; 304800 ft foot feet; 914400 yd yard yards; 1609344000 mi mile miles
    mass: 1 mg milligram milligrams; 1000 g gram grams; 1000000 kg kilogram kilograms kilo kilos
    mass: 1000000000 t tonne tonnes
    weight: 1 oz ounce ounces; 16 lb lbs pound pounds
    time: 1 ms millisecond milliseconds; 1000 s sec secs second seconds; 60000 min mins minute minutes
    time: 3600000 h hr hrs hour hours; 86400000 d day days; 604800000 week weeks
    months: 1 month months; 12 yr yrs year years
    volume: 1 ml mL milliliter milliliters millilitre millilitres
    volume: 1000 l L liter liters litre litres
    money: 1 cent cents ¢; 100 dollar dollars
    angle: 1 ° degree degrees deg
    celsius: 1 °C
    fahrenheit: 1 °F
"""


def _read_table() -> None:
    for line in _TABLE.strip().splitlines():
        dimension, _, entries = line.strip().partition(":")
        for entry in entries.split(";"):
            factor, *names = entry.split()
            UNITS.update((name, (dimension, Fraction(factor))) for name in names)


_read_table()

_GROUPED = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:[\u00a0\u2009\u202f'’_]\d{3})+|\d+)"
_DIGITS = r"(?:\d{1,3}(?: \d{3})+|" + _GROUPED[3:]
DECIMAL = rf"(?:{_GROUPED}(?:\.\d+)?|\.\d+)"
"""A number in running text, where a space ends it."""
_WHOLE = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_POWER = r"(?:\s*(?:\*|x|×|·)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*)?(?P<power>[-+]?\d+)\s*\}?|[eE](?P<exponent>[-+]?\d+))"
_NUMBER = re.compile(
    rf"(?P<sign>[-+])?\s*(?P<currency>US\$|[$€£¥₹]|(?:USD|EUR|GBP|JPY|CNY|RMB|INR)\b)?\s*(?P<inner>[-+])?\s*"
    rf"(?:(?:(?P<whole>{_DIGITS})(?:\s+and\s+|\s+))?(?P<top>{_WHOLE})\s*/\s*(?P<bottom>-?{_WHOLE})"
    rf"|(?P<base>10)\s*(?:\^|\*\*)\s*(?:\{{\s*)?(?P<of_ten>[-+]?\d+)\s*\}}?|(?P<decimal>{_WHOLE}){_POWER}?)"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)s?\b)?"
    r"(?:\s*(?P<percent>%|percent\b|per\s+cent\b))?\s*(?P<unit>[^\d].*)?",
    re.S,
)
_WRAPPED = (
    ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), (r"\boxed{", "}"),
    ("{", "}"),
)  # fmt: skip
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([-+]?[\d.,]+)\s*\}|(\d)\s*(\d)(?!\d)|(\d)\s*\{\s*(\d+)\s*\})"
)
_UNIT = re.compile(r"[^\W\d_][^\W\d_.'’-]*(?:[.'’-][^\W\d_]+)*\.?|[€$£¥₹¢°]")
_NEGATED = re.compile(r"\b(?:or|not|and|to|than|nor|plus|minus|times|over)\b", re.I)


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number with its unit: the words or symbol that were read with it, or "%"; empty if there was none."""

    value: Fraction
    unit: str = ""


def read_quantity(text: str) -> Quantity | None:
    """Return the number that a whole text is, with its unit; None if it is not one number, or could be two."""
    if len(text) > LONGEST_NUMBER:
        return None
    match = _NUMBER.fullmatch(_plain(text))
    if match is None:
        return None
    value = _value(match)
    unit = _unit(match["unit"] or "")
    if value is None or unit is None or (match["unit"] and match["unit"][0] in "kKMB" and len(unit) == 1):
        return None
    if match["currency"]:
        return None if match["percent"] or unit else Quantity(value, CURRENCIES[match["currency"]])
    if match["percent"]:
        return None if unit else Quantity(value, "%")
    return Quantity(value, unit)


def equal_quantities(answer: Quantity, expected: Quantity, tolerance: Fraction = Fraction(0)) -> bool:
    """Return whether two numbers are equal, or differ by at most ``tolerance``, relative to the expected one.

    A unit may be missing on one side, but two must agree: known ones are converted, others compared by their last word.
    A percentage equals its fraction (50% and 0.5), and the bare number from 1 on (50% and 50).
    """

    def close(first: Fraction, second: Fraction) -> bool:
        return abs(first - second) <= tolerance * (abs(second) or 1)

    percents = (answer.unit == "%", expected.unit == "%")
    if all(percents) or not any(percents):
        if not (answer.unit and expected.unit):
            return close(answer.value, expected.value)
        first, second = unit_base(answer.unit), unit_base(expected.unit)
        return first[0] == second[0] and close(answer.value * first[1], expected.value * second[1])
    percent, other = (answer, expected) if percents[0] else (expected, answer)
    if other.unit:
        return False
    if abs(other.value) >= 1 and close(answer.value, expected.value):
        return True
    if percents[0]:
        return close(percent.value / 100, other.value)
    return close(other.value, percent.value / 100)


def strip_markup(text: str) -> str:
    """Return a text without surrounding white space, mathematics delimiters, emphasis and final full stop."""
    before = None
    for _ in range(MOST_LAYERS):
        if text == before:
            break
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith("..") and len(text) > 1:
            text = text[:-1]
        for opened, closed in _WRAPPED:
            inner = text[len(opened) : len(text) - len(closed)]
            if text.startswith(opened) and text.endswith(closed) and len(text) > len(opened) + len(closed):
                level = 0
                for character in inner:
                    level += (character == "{") - (character == "}")
                    if level < 0:
                        break
                if level == 0 and (opened not in inner or opened == "{"):
                    text = inner
    return text


def _plain(text: str) -> str:
    """Return a number's text without LaTeX and typography."""
    text = re.sub(r"(?<=10)[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: "^" + power.group().translate(_SUPERSCRIPTS), text)
    text = text.translate(_PLAIN)
    for sign, spelled in _VULGAR.items():
        text = text.replace(sign, f" {spelled}")
    text = strip_markup(text)
    for command, plain in (("{,}", ","), (r"\,", " "), (r"\;", " "), (r"\ ", " "), (r"\!", ""), ("~", " "),
                           (r"\%", "%"), (r"\$", "$"), (r"\times", "×"), (r"\cdot", "·"),
                           (r"^{\circ}", "°"), (r"^\circ", "°"), (r"\left", ""), (r"\right", "")):  # fmt: skip
        text = text.replace(command, plain)
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1", text)
    text = _FRACTION.sub(_divided, text)
    text = re.sub(r"^[A-Za-z]\w{0,11}\s*=\s*", "", text.strip())
    # A thousands separator with a space on its right (left by \,) joins as it does without.
    return re.sub(r"(?<=\d), (?=\d{3}\b)", ",", text) if "\\" in text else text.strip()


def _divided(match: re.Match[str]) -> str:
    top, bottom = [part for part in match.groups() if part is not None]
    return f" {top}/{bottom}"


def _value(match: re.Match[str]) -> Fraction | None:
    power = int(match["power"] or match["exponent"] or match["of_ten"] or 0)
    if abs(power) > LARGEST_EXPONENT or (match["sign"] and match["inner"]):
        return None
    if match["base"]:
        value = Fraction(1)
    elif match["decimal"]:
        value = _fraction(match["decimal"])
    else:
        bottom = _fraction(match["bottom"])
        if not bottom:
            return None
        value = _fraction(match["whole"] or "0") + _fraction(match["top"]) / bottom
    value *= Fraction(10) ** (power + _SCALES.get(match["scale"] or "", 0))
    return -value if "-" in (match["sign"], match["inner"]) else value


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.+-]", "", digits).rstrip("."))


def _unit(text: str) -> str | None:
    """Return the words of a unit; None if they cannot be one: operators, a second number, too many words."""
    text = re.sub(r"\^\{?([23])\}?|[²³]", lambda power: f"^{power[1] or '²³'.index(power[0]) + 2}", text.strip())
    if not text:
        return ""
    if len(text) == 1 and text.isalpha() and text not in UNITS:
        return None  # a variable
    parts = re.split(r"\s*/\s*|\s+per\s+|\s+", re.sub(r"\^[23]", "", text))
    if len(parts) > 4 or not all(_UNIT.fullmatch(part) or part in UNITS for part in parts) or _NEGATED.search(text):
        return None
    return CURRENCIES.get(text, text)


def unit_base(unit: str) -> tuple[str, Fraction]:
    """Return what a unit measures, and the factor to its base unit."""
    if unit in UNITS or unit.lower() in UNITS:
        return UNITS.get(unit) or UNITS[unit.lower()]
    power = re.fullmatch(r"(.+)\^([23])", unit) or re.fullmatch(r"(sq|square|cu|cubic)\.? (.+)", unit, re.I)
    if power is not None:
        name, level = power.groups() if power[2] in "23" else (power[2], "2" if power[1][0] in "sS" else "3")
        dimension, factor = unit_base(name)
        return f"{dimension}^{level}", factor ** int(level)
    if "/" in unit or " per " in unit:
        (first, one), (second, other) = map(unit_base, re.split(r"\s*/\s*|\s+per\s+", unit, maxsplit=1))
        return f"{first}/{second}", one / other
    last = unit.rstrip(".").split()[-1].lower()
    return last.removesuffix("s") if len(last) > 2 else last, Fraction(1)
