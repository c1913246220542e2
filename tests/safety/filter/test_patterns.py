"""Personal data and secrets: forms, check digits, and numbers that are neither."""

from __future__ import annotations

import pytest

from burnish.safety.filter.normalise import fold
from burnish.safety.filter.patterns import PatternLayer


def found(text: str) -> list[tuple[str, str]]:
    return sorted((one.category, text[one.start : one.end]) for one in PatternLayer().find(fold(text)))


def token(prefix: str, length: int) -> str:
    """A made-up token of this form, put together here so that no scanner mistakes this file for a leak."""
    return prefix + ("aB3" * length)[:length]


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("ada@example.org", "email"), ("ada.l+x@mail.example.co.uk", "email"), ("ＡＤＡ＠example．org", "email"),
        ("13800138000", "phone"), ("138-0013-8000", "phone"),
        ("+86 138 0013 8000", "phone"), ("１３８００１３８０００", "phone"),
        ("010-62795000", "phone"), ("(212) 555-0123", "phone"), ("+44 20 7946 0958", "phone"),
        # 11010519491231002X is the example of the standard GB 11643: its check digit is 10, written X.
        ("11010519491231002X", "identity"), ("11010519491231002x", "identity"),
        ("219-09-9998", "identity"),
        # The test numbers that card networks publish.
        ("4111111111111111", "card"), ("4111-1111-1111-1111", "card"), ("378282246310005", "card"),
        ("6011111111111117", "card"),
        (token("ghp_", 36), "secret"), (token("sk-", 40), "secret"), ("AKIA" + "ABCD" * 4, "secret"),
        (token("xoxb-", 24), "secret"),
        (token("glpat-", 20), "secret"), ("-----BEGIN RSA PRIVATE KEY-----", "secret"),
        (".".join([token("eyJ", 20), token("eyJ", 20), token("", 30)]), "secret"),
    ],
)  # fmt: skip
def test_a_form_is_found_where_it_is(text: str, category: str) -> None:
    for before, after in (("", ""), ("see ", "."), ("电话：", "，谢谢"), ("(", ")")):
        shown = found(before + text + after)
        assert [kind for kind, _ in shown] == [category]
        assert shown[0][1].strip("()") == text.strip("()")


@pytest.mark.parametrize(
    "text",
    [
        "11010519491231002Y", "110105194912310021",  # the check digit is wrong
        "4111111111111112", "1234567890123456",  # Luhn's sum is wrong; no network has such numbers
        "2026-11-28 16:45:00", "3.14159265358979", "1,234,567,890", "192.168.100.200", "ISBN 978-3-16-148410-0",
        "10.1038/s41586-020-2649-2", "1998-2004", "12345678", "v1.2.3-20260101", "00000000000000000000000000",
        "user@localhost", "a @ b", "@home", "x@y", "2 @ 3.50 each", "scikit-learn",
        "risk-free-rate-of-return-2026", "sk-learn",
    ],
)  # fmt: skip
def test_other_numbers_and_signs_are_not_personal_data(text: str) -> None:
    assert found(text) == []
