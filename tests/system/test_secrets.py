"""Secrets in texts of others: spellings that are recognised, and texts that are left as they are."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest

from burnish.system.secrets import HIDDEN, shows, without_secrets

KEY = "sk-Zq7/x+9dLm_W3kT-p0Rv=aB2cE4f"
ESCAPED = "".join(f"\\u{ord(one):04x}" for one in KEY)
HEX = KEY.encode().hex()


@pytest.mark.parametrize(
    "spelling",
    [
        KEY.upper(), KEY.lower(), KEY.swapcase(), KEY[:14] + "...", "..." + KEY[-12:], KEY[:12] + "***" + KEY[-3:],
        "-".join(KEY), "\n".join(KEY), " ".join(KEY[start : start + 5] for start in range(0, len(KEY), 5)),
        "\u200b".join(KEY), KEY[::-1], quote(KEY, safe=""), quote(quote(KEY, safe="")),
        "".join(f"%{ord(one):02X}" for one in KEY), json.dumps(KEY).replace("/", "\\/"), ESCAPED, json.dumps(ESCAPED),
        "".join(f"\\x{ord(one):02x}" for one in KEY), "".join(f"&#{ord(one)};" for one in KEY),
        "".join(f"&#x{ord(one):x};" for one in KEY), html.escape(quote(KEY)), HEX, HEX.upper(), KEY.encode().hex(":"),
        " ".join(str(ord(one)) for one in KEY), str([ord(one) for one in KEY]),
        base64.b64encode(KEY.encode()).decode(), base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("="),
        base64.b64encode(f"Bearer {KEY}".encode()).decode(), base64.b64encode(f"user:{KEY}".encode()).decode(),
        base64.b64encode(base64.b64encode(KEY.encode())).decode(), quote(base64.b64encode(KEY.encode()).decode()),
        base64.encodebytes(f"{'x' * 61}{KEY}".encode()).decode(), base64.b64encode(HEX.encode()).decode(),
    ],
)  # fmt: skip
def test_a_secret_is_recognised_in_other_spellings(spelling: str) -> None:
    assert shows(f'{{"error": "no such key: {spelling}"}}', KEY)
    assert without_secrets(f"no such key: {spelling}.", [KEY]) == HIDDEN


def test_its_own_spelling_is_replaced_and_the_rest_is_kept() -> None:
    assert without_secrets(f"key {KEY} is not valid, {KEY}", [KEY]) == "key (key) is not valid, (key)"
    assert without_secrets(f"{KEY} and {KEY[:12]}", [KEY]) == HIDDEN


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"message": "Incorrect API key provided", "type": "invalid_request_error"}}', "sk-", KEY[:6] + "***",
        "The model `gpt` does not exist or you do not have access to it. 0123456789", "我爱你" * 1000, "",
        "Rate limit reached for requests per min (RPM): Limit 3, Used 3, Requested 1. " * 20,
    ],
)  # fmt: skip
def test_other_texts_are_left_as_they_are(text: str) -> None:
    assert without_secrets(text, [KEY]) == text


def test_a_placeholder_of_a_server_without_keys_is_no_secret() -> None:
    assert without_secrets("is nONE of 7", ["none"]) == "is nONE of 7"
    assert without_secrets("the EMPTY set is empty", ["EMPTY"]) == "the (key) set is empty"


def test_half_of_a_short_secret_gives_it_away() -> None:
    assert shows("starts with secr", "secret-123") and not shows("starts with sec", "secret-123")


def test_a_long_text_takes_bounded_work() -> None:
    text = base64.b64encode(b"abc " * 50_000).decode()
    assert not shows(text, KEY)
