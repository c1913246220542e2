"""Pattern layer: personal data and secrets, by expressions whose time is linear in the text.

Numbers are recognised by their form and, where they have one, their check digit (python-stdnum). A form without a check
digit gets a lower score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from burnish.safety.filter.normalise import Normalised
from burnish.safety.filter.verdict import TextFinding
from burnish.system.optional_packages import needed

_LOCAL_PART = "abcdefghijklmnopqrstuvwxyz0123456789._%+-"
_LONGEST_LOCAL = 64
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9\-]{0,62}(?:\.[a-z0-9\-]{1,63}){0,6}\.[a-z]{2,24}(?![a-z0-9])")
# Digits with at most two separators between them: at most 19, so that no start costs more than a constant.
_NUMBER = re.compile(r"(?<![a-z0-9.])\+?\(?[0-9](?:[ \-.()]{0,2}[0-9]){6,18}x?(?![a-z0-9])")
_MOBILE_CN = re.compile(r"(?:\+?86[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}")
_PHONES = re.compile(
    r"\+[1-9](?:[ \-.()]{0,2}[0-9]){7,14}"  # international
    r"|\(?0[0-9]{2,3}\)?[ -][0-9]{7,8}"  # Chinese landline
    r"|(?:1[ \-.])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[\-. ])[2-9][0-9]{2}[\-. ][0-9]{4}"  # North America
)
_SOCIAL_SECURITY = re.compile(r"[0-9]{3}-[0-9]{2}-[0-9]{4}")
_CARD = re.compile(
    r"4[0-9]{12}(?:[0-9]{3}){0,2}|(?:5[1-5]|2[2-7])[0-9]{14}|3[47][0-9]{13}|6(?:011|5[0-9]{2})[0-9]{12}|62[0-9]{14,17}"
    r"|35[0-9]{14}|3(?:0[0-5]|[68][0-9])[0-9]{11}"
)
_KEYS = re.compile(
    r"(?<![A-Za-z0-9_\-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_\-]{20}"
    r"|sk-(?=[A-Za-z_\-]*[0-9])[A-Za-z0-9_\-]{20,255}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}"
    r"|AIza[0-9A-Za-z_\-]{35}|xox[abeoprs]-[0-9A-Za-z\-]{10,255}|hf_[A-Za-z]{30,40}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_\-]{50,255}"
    r"|eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"
    r")(?![A-Za-z0-9])|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
)


class PatternLayer:
    """Finder of e-mail addresses, phone numbers, identity numbers, payment cards and secrets."""

    def find(self, text: Normalised) -> list[TextFinding]:
        """Return the findings in the original text."""
        found = [*_emails(text.text), *_numbers(text.text)]
        findings = [TextFinding(kind, *text.span(start, end), score, "patterns") for kind, start, end, score in found]
        secrets = (match.span() for match in _KEYS.finditer(text.original))
        return findings + [TextFinding("secret", start, end, 0.95, "patterns") for start, end in secrets]


def _emails(text: str) -> Iterator[tuple[str, int, int, float]]:
    at = text.find("@")
    while at >= 0:
        window = text[max(0, at - _LONGEST_LOCAL) : at]
        local = window[len(window.rstrip(_LOCAL_PART)) :].lstrip(".%+-")
        if local and (domain := _DOMAIN.match(text, at + 1)):
            yield "email", at - len(local), domain.end(), 0.9
        at = text.find("@", at + 1)


def _numbers(text: str) -> Iterator[tuple[str, int, int, float]]:
    for match in _NUMBER.finditer(text):
        shown = match.group() if ")" in match.group() else match.group().lstrip("(")
        if kind := _kind(shown, "".join(filter(str.isalnum, shown))):
            yield kind[0], match.end() - len(shown), match.end(), kind[1]


def _kind(shown: str, digits: str) -> tuple[str, float] | None:
    """Return the category and the score of a number by its form and its check digit; None if it is any other."""
    checks = _checks()
    if len(digits) == 18 and digits[:17].isdecimal() and checks["resident"].is_valid(digits.upper()):
        return "identity", 0.95
    if not digits.isdecimal():
        return None
    if _CARD.fullmatch(digits) and checks["luhn"].is_valid(digits):
        return "card", 0.95
    if _SOCIAL_SECURITY.fullmatch(shown) and checks["social"].is_valid(shown):
        return "identity", 0.6
    if _MOBILE_CN.fullmatch(shown):
        return "phone", 0.8
    return ("phone", 0.7) if _PHONES.fullmatch(shown) else None


@lru_cache(maxsize=1)
def _checks() -> dict[str, Any]:
    modules = {"resident": "stdnum.cn.ric", "luhn": "stdnum.luhn", "social": "stdnum.us.ssn"}
    return {name: needed(module, "safety", "the content filter") for name, module in modules.items()}
