"""Normalised form of a text, in which disguised spellings are plain, with a map back to the original.

Each character is normalised without its neighbours: compatibility forms (full width, ligatures, mathematical letters)
become plain ones, combining marks and invisible characters disappear, letters lose their case, and letters of other
scripts that look like Latin ones become those. Then traditional Chinese becomes simplified, by OpenCC's ``tw2s``, which
keeps the length.

Sources: UAX #15 (NFKD); UTS #39 for which letters are confusable; the table here has the common ones.
"""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from burnish.system.optional_packages import needed

_LOOK_ALIKES = {
    # Cyrillic and Greek letters in lower case, Latin letters that do not decompose, and the Roman and modifier forms.
    "a": "аαɑᴀ", "b": "ьвʙβ", "c": "сϲᴄ", "d": "ԁɗđᴅ", "e": "еεєҽᴇ", "f": "ƒꜰ", "g": "ɡցɢ", "h": "һհнʜ",
    "i": "іιıɩɪ", "j": "јϳᴊ", "k": "кκᴋ", "l": "ӏłʟǀ", "m": "мᴍ", "n": "пոηɴ", "o": "оοσօøᴏ", "p": "рρᴘ",
    "q": "ԛգ", "r": "гᴦʀ", "s": "ѕꜱ", "t": "тτᴛ", "u": "υսцʋᴜ", "v": "ѵνᴠ", "w": "ѡԝшωᴡ", "x": "хχ×",
    "y": "уүγʏ", "z": "ᴢʐ",
}  # fmt: skip
LOOK_ALIKES = {character: letter for letter, group in _LOOK_ALIKES.items() for character in group} | {
    chr(first + index): chr(ord("a") + index)
    for first in (0x1F150, 0x1F170)
    for index in range(26)  # white on black
}
_INVISIBLE = "\u115f\u1160\u3164\uffa0\u2800"  # letters and symbols without ink
_BLANKS = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85"


class _Folding(dict[int, str]):
    """Code point -> its normalised form, computed when it is first met; for ``str.translate``."""

    def __missing__(self, code: int) -> str:
        letters = "".join(LOOK_ALIKES.get(one, one) for one in _plain(chr(code)).casefold())
        self[code] = letters
        return letters


def _plain(character: str) -> str:
    """Return the compatibility form without marks, controls and invisible characters."""
    return "".join(
        one
        for one in unicodedata.normalize("NFKD", character)
        if one in _BLANKS or (one not in _INVISIBLE and unicodedata.category(one) not in ("Mn", "Me", "Cf", "Cc"))
    )


_FOLDING = _Folding()


@dataclass(frozen=True, slots=True)
class Normalised:
    """A text and its normalised form; the map between them is computed when it is first needed."""

    original: str
    text: str
    _ends: list[int] = field(default_factory=list)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the original span of a span of the normalised text, with the invisible characters that end it."""
        first, last = self._index(start), self._index(end - 1) + 1
        while last < len(self.original) and not _FOLDING[ord(self.original[last])]:
            last += 1
        return first, last

    def _index(self, position: int) -> int:
        """Return the index of the original character that gave this normalised one."""
        if self.original.isascii() and len(self.original) == len(self.text):
            return position
        if not self._ends:
            index = (index for index, character in enumerate(self.original) for _ in _FOLDING[ord(character)])
            self._ends.extend(index)
        return self._ends[position]


def fold(text: str) -> Normalised:
    """Return the normalised form of a text, in time proportional to its length."""
    folded = text.translate(_FOLDING)
    return Normalised(text, folded if folded.isascii() else simplified(folded))


def simplified(text: str) -> str:
    """Return a text with traditional Chinese characters replaced by simplified ones; the length stays."""
    single = _simplified_characters()
    if single.keys().isdisjoint(map(ord, text)):
        return text
    with suppress(UnicodeEncodeError):  # half a surrogate pair, which JSON may hold
        converted: str = _opencc().convert(text)
        if len(converted) == len(text):
            return converted
    return text.translate(single)


@lru_cache(maxsize=1)
def _opencc() -> Any:
    return needed("opencc", "safety", "the content filter").OpenCC("tw2s")


@lru_cache(maxsize=1)
def _simplified_characters() -> dict[int, str]:
    """Return code point -> simplified character, of those that differ."""
    characters = [chr(code) for first, last in ((0x3400, 0x9FFF), (0x20000, 0x2A6DF)) for code in range(first, last)]
    converted = _opencc().convert("\n".join(characters)).split("\n")
    pairs = zip(characters, converted, strict=True)
    # 著 is in 看著 a form of 着 and elsewhere itself: it depends on its neighbours.
    return {ord("著"): "著"} | {ord(old): new for old, new in pairs if old != new and len(new) == 1}
