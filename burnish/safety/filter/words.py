"""Word layer: words and phrases in English and Chinese, in plain and in disguised spellings.

Plain text is scanned by an Aho-Corasick automaton, in one pass. Regular expressions, each linear in the text, then look
for pieces that may hide a word: digits and symbols for letters ("b1tch"), letters apart ("d a m n", "d-a-m-n"), letters
repeated, letters masked by asterisks, and Chinese characters apart. Such a piece counts only if the whole piece is a
word of the list, so that "Essex" or "s-c-u-n-t-horpe" do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from burnish.safety.filter.lexicon import CLEAR, Term
from burnish.safety.filter.normalise import Normalised
from burnish.safety.filter.verdict import TextFinding
from burnish.system.optional_packages import needed

HAN = "\u3400-\u9fff\U00020000-\U0003ffff"
_LEET = str.maketrans("4@3€105$7+8!|l", "aaeeiossttbiii")
_MARKS = "0-9@$€!|+"
_SIGNS = re.compile(rf"[a-z][{_MARKS}*#]|[{_MARKS}*#][a-z]|([a-z])\1\1")
_TOKEN = re.compile(rf"[a-z{_MARKS}*#]+")
_STRETCHED = re.compile(r"([a-z])\1\1")
_REPEATS = re.compile(r"(.)\1+")
# Letters with one separator, always the same, between them; and pieces of words joined by marks.
_SPACED = re.compile(r"(?<![^\W_])[a-z0-9@$!]([ .\-_*/|,~·\n\t])[a-z0-9@$!](?:\1[a-z0-9@$!])+(?![^\W_])")
_JOINED = re.compile(r"(?<![\w@$.\-~'])[a-z0-9@$]{1,24}(?:[.\-_~'][a-z0-9@$]{1,24}){1,24}(?![\w@$.\-~'])")
_HAN_APART = re.compile(rf"[{HAN}]+(?:[*_\-.·~|+/^]{{1,3}}[{HAN}]+)+")
# Pinyin with digits for tones: "wang2ba1dan4", "wang2 ba1 dan4".
_TONED = re.compile(r"(?<![^\W_])[a-z]{1,6}[0-5](?: ?[a-z]{1,6}[0-5])+(?![^\W_])")
_HAN_SPACED = re.compile(rf"(?<![{HAN}])[{HAN}](?:[ \n\t]{{1,2}}[{HAN}])+(?![{HAN}])")
_TAILS = frozenset({"you", "u", "off", "me", "it", "him", "her", "them", "this", "that", "er", "ers", "ing", "s"})
_BEFORE_OPENING = "就真去了啊吧呢"


class WordLayer:
    """Finder of terms; one term may belong to several categories.

    Args:
        terms: what to look for, in normalised form.
        allowed: phrases in normalised form in which nothing is reported.
    """

    def __init__(self, terms: Iterable[Term], allowed: Iterable[str] = ()) -> None:
        self._terms = tuple(dict.fromkeys(terms))
        self._automaton = _automaton((term.text, term) for term in self._terms)
        self._allowed = _automaton((phrase, phrase) for phrase in allowed if phrase)
        single = [term for term in self._terms if term.score >= CLEAR and re.fullmatch(r"[a-z]{4,}", term.text)]
        short = [term for term in self._terms if term.score >= CLEAR and re.fullmatch(r"[a-z]{3}", term.text)]
        self._leet = _index((term.text.translate(_LEET), term) for term in single)
        self._apart = self._leet | _index((term.text.translate(_LEET), term) for term in short)
        squeezed = ((_squeezed(term.text.translate(_LEET)), term) for term in single)
        self._stretched = _index((text, term) for text, term in squeezed if len(text) >= 4)
        self._masked = _index((mask, term) for term in single for mask in _masks(term.text))
        self.longest = max((len(term.text) for term in self._terms), default=0)

    def find(self, text: Normalised) -> list[TextFinding]:
        """Return the findings in the original text, those inside allowed phrases left out."""
        hits = list(self._plain(text.text))
        hits += self._disguised(text.text)
        return [TextFinding(term.category, *text.span(start, end), term.score, "words") for start, end, term in hits]

    def allowed(self, text: Normalised) -> list[tuple[int, int]]:
        """Return the original spans of the allowed phrases in a text."""
        if self._allowed is None:
            return []
        spans = ((end - len(phrase) + 1, end + 1) for end, found in self._allowed.iter(text.text) for phrase in found)
        return [text.span(*span) for span in spans if _is_whole(text.text, *span)]

    def _plain(self, text: str, *, whole: bool = True) -> Iterator[tuple[int, int, Term]]:
        if self._automaton is None:
            return
        for last, terms in self._automaton.iter(text):
            for term in terms:
                start, end = last - len(term.text) + 1, last + 1
                if not whole or term.inside or _is_whole(text, start, end):
                    before = text[start - 1 : start]
                    if not (term.opens and before > "\u2e80" and before.isalpha() and before not in _BEFORE_OPENING):
                        yield start, end, term

    def _disguised(self, text: str) -> Iterator[tuple[int, int, Term]]:
        if _SIGNS.search(text):
            for match in _TOKEN.finditer(text):
                yield from self._token(match.group(), match.start())
        for match in _SPACED.finditer(text):
            yield from self._letters(match.group()[::2], match.span(), tails=True)
        for match in _JOINED.finditer(text):
            yield from self._letters(re.sub(r"[.\-_~']", "", match.group()), match.span(), tails=False)
        for match in _TONED.finditer(text):
            yield from self._toned(match.group(), match.start())
        if not text.isascii():
            for pattern in (_HAN_APART, _HAN_SPACED):
                for match in pattern.finditer(text):
                    yield from self._han(match.group(), match.start())

    def _token(self, token: str, start: int) -> Iterator[tuple[int, int, Term]]:
        """Look up a token with digits and symbols for letters, with masked letters, or with repeated letters."""
        token = token.rstrip("!|+*#")
        bare = token.lstrip("!|+*#")
        start, letters = start + len(token) - len(bare), sum("a" <= one <= "z" for one in bare)
        if letters == len(bare):
            terms: Sequence[Term] = ()
        elif "*" in bare or "#" in bare:
            terms = self._masked.get(bare.replace("#", "*"), ())
        else:
            terms = self._leet.get(bare.translate(_LEET), ()) if 3 * letters >= len(bare) else ()
        if not terms and _STRETCHED.search(bare):
            terms = self._stretched.get(_squeezed(bare.translate(_LEET)), ())
        for term in terms:
            yield start, start + len(bare), term

    def _letters(self, letters: str, span: tuple[int, int], *, tails: bool) -> Iterator[tuple[int, int, Term]]:
        if 2 * sum("a" <= one <= "z" for one in letters) < len(letters):
            return
        plain = letters.translate(_LEET)
        ends = [len(plain)] + [len(plain) - len(tail) for tail in _TAILS if tails and letters.endswith(tail)]
        for end in ends:
            for term in self._apart.get(plain[:end], ()):
                yield *span, term

    def _toned(self, piece: str, start: int) -> Iterator[tuple[int, int, Term]]:
        """Scan syllables with a blank in place of the digits after them."""
        kept = [index for index, character in enumerate(piece) if character != " "]
        spoken = "".join(" " if piece[index].isdigit() else piece[index] for index in kept)
        for first, end, term in self._plain(spoken):
            if " " in term.text:
                yield start + kept[first], start + kept[end - 1] + 2, term

    def _han(self, piece: str, start: int) -> Iterator[tuple[int, int, Term]]:
        """Scan Chinese characters without the marks between them; only terms that had a mark inside are new."""
        kept = [index for index, character in enumerate(piece) if character > "\u2e80"]
        for first, end, term in self._plain("".join(piece[index] for index in kept), whole=False):
            low, high = kept[first], kept[end - 1] + 1
            if high - low > end - first:
                yield start + low, start + high, term


def _automaton(pairs: Iterable[tuple[str, Any]]) -> Any:
    """Return an automaton whose values are the objects of each text, or None if there are no texts."""
    objects = _index(pairs)
    if not objects:
        return None
    automaton = needed("ahocorasick", "safety", "the content filter").Automaton()
    for text, values in objects.items():
        automaton.add_word(text, tuple(values))
    automaton.make_automaton()
    return automaton


def _index(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    index: dict[str, list[Any]] = {}
    for text, value in pairs:
        index.setdefault(text, []).append(value)
    return index


def _is_whole(text: str, start: int, end: int) -> bool:
    """Return whether no word runs into the span; Chinese has no spaces, so any span of it is whole."""
    return not (
        (_is_letter(text[start]) and start > 0 and _is_letter(text[start - 1]))
        or (_is_letter(text[end - 1]) and end < len(text) and _is_letter(text[end]))
    )


def _is_letter(character: str) -> bool:
    return character < "\u2e80" and character.isalnum()


def _squeezed(text: str) -> str:
    return _REPEATS.sub(r"\1", text)


def _masks(word: str) -> Iterator[str]:
    """Yield a word with its first vowel masked, and with all but its ends masked if it is short."""
    if vowel := re.search("[aeiou]", word[1:]):
        yield f"{word[: vowel.start() + 1]}*{word[vowel.start() + 2 :]}"
    if len(word) <= 5:
        yield f"{word[0]}{'*' * (len(word) - 2)}{word[-1]}"
