"""Secrets in texts of others: removed as they are, and recognised in other spellings.

A server may send a key back in an error: whole, in part, in other case, with characters between, escaped for a URL,
JSON or HTML, in base64 or in hexadecimal digits. Nobody can list all spellings, so a text that shows one in another
than its own is not shown at all.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

PART = 8
"""Letters and digits of a secret in a row that give it away; of a short one half of them, but at least four."""
SHORTEST = 6
"""A secret with fewer letters and digits is a placeholder for servers that need none, such as "none"."""
HIDDEN = "(a text with the key in it)"
_DEPTH = 3
"""Escapes and encodings inside one another that are undone."""
_MOST = 1 << 18
"""Characters that are decoded in all: a text may have many forms."""
_ESCAPE = re.compile(r"\\u\{?([0-9a-fA-F]{4,6})\}?|\\x([0-9a-fA-F]{2})|\\([0-7]{3})")
_ENCODED = re.compile(r"[A-Za-z0-9+/_\-=\s]{8,}")
_DIGITS = re.compile(r"(?:[0-9a-fA-F]{2}[\s:,]?){6,}")
_CODES = re.compile(r"(?<!\d)(?:\d{2,3}[\s,;]+){5,}\d{2,3}(?!\d)")


def without_secrets(text: str, secrets: Iterable[str], placeholder: str = "(key)") -> str:
    """Return a text without secrets, or ``HIDDEN`` if it still shows one in another spelling."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, placeholder)
            if shows(text.replace(placeholder, " "), secret):
                return HIDDEN
    return text


def shows(text: str, secret: str) -> bool:
    """Return whether a text has a part of a secret, in any of the spellings above.

    Characters between letters and digits do not count, nor does case.
    """
    bare = _bare(secret)
    if len(bare) < SHORTEST:
        return False
    size = max(4, min(PART, len(bare) // 2))
    parts = {bare[start : start + size] for start in range(len(bare) - size + 1)}
    parts |= {part[::-1] for part in parts}
    return any(_has_one(_bare(form), parts, size) for form in _forms(text))


def _has_one(text: str, parts: set[str], size: int) -> bool:
    return any(text[start : start + size] in parts for start in range(len(text) - size + 1))


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _forms(text: str) -> Iterator[str]:
    """Yield a text and what it means in the encodings above, one inside the other."""
    seen, level, left = {text}, [text], _MOST
    yield text
    for _ in range(_DEPTH):
        deeper: list[str] = []
        for form in (form for one in level for form in _decoded(one)):
            left -= len(form)
            if left < 0:
                return
            if form not in seen:
                seen.add(form)
                deeper.append(form)
                yield form
        level = deeper


def _decoded(text: str) -> Iterator[str]:
    yield unquote(text)
    yield html.unescape(text)
    yield _ESCAPE.sub(_character, text).replace("\\", "")
    for match in _DIGITS.finditer(text):
        yield _latin(bytes.fromhex(re.sub(r"[\s:,]", "", match.group())))
    for match in _CODES.finditer(text):
        yield "".join(chr(int(code)) for code in re.split(r"[\s,;]+", match.group()))
    for match in _ENCODED.finditer(text):
        run = re.sub(r"[\s=]", "", match.group()).translate(str.maketrans("-_", "+/"))
        for start in range(4):
            piece = run[start : start + (len(run) - start) // 4 * 4]
            padded = run[start:] + "=" * (-(len(run) - start) % 4)
            for candidate in {piece, padded}:
                try:
                    yield _latin(base64.b64decode(candidate))
                except binascii.Error:
                    continue


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2], 16) if match[1] or match[2] else int(match[3], 8)
    return chr(code) if code < 0x110000 else ""


def _latin(raw: bytes) -> str:
    return raw.decode("latin-1")
