"""Filter of a text while it is generated, which holds back what a finding may still begin in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from burnish.safety.filter.content_filter import ContentFilter
from burnish.safety.filter.normalise import fold
from burnish.safety.filter.verdict import FilterVerdict, redact

HELD_BACK = 64
"""Least number of visible characters that are held back; twice the longest term of the lists, if that is more."""
_LONGEST_TOKEN = 400
"""Characters of one run without white space, such as an address or a key, that are held back as a whole."""
_CONTEXT = 64
"""Characters before the held-back text that the filter reads too, for the beginnings of words."""


class FilteredStream:
    """Receiver of pieces of a text, which passes on what is settled, with flagged findings redacted.

    Once a category is blocked, a notice is passed on in place of the rest, and ``blocked`` is true. Layers that judge
    whole texts, classifiers and models, need the end: with one of them, all text is held back until ``finish``.

    Args:
        content_filter: the filter.
        on_text: receives the settled text.
    """

    def __init__(self, content_filter: ContentFilter, on_text: Callable[[str], None]) -> None:
        self._filter, self._on_text = content_filter, on_text
        self._held, self._context = "", ""
        self._tail = max(HELD_BACK, 2 * content_filter.words.longest)
        self.blocked = False

    def update(self, piece: str) -> None:
        """Receive a piece and pass on what is settled."""
        self._held += piece
        if not self.blocked and len(self._held) > self._tail and not self._filter.judges_whole_texts:
            self._pass_on(self._settled())

    def finish(self) -> None:
        """Pass on the rest."""
        if not self.blocked:
            self._pass_on(len(self._held))

    def _settled(self) -> int:
        """Return the index before which no finding can begin that later text completes."""
        folded = fold(self._held)
        if len(folded.text) <= self._tail:
            return 0
        end, _ = folded.span(len(folded.text) - self._tail, len(folded.text))
        start = end
        while start > 0 and end - start < _LONGEST_TOKEN and _in_token(self._held[start - 1]):
            start -= 1
        return start if start == 0 or not _in_token(self._held[start - 1]) else end

    def _pass_on(self, end: int) -> None:
        if end <= 0:
            return
        before = len(self._context)
        verdict = self._filter.check(self._context + self._held)
        findings = [
            replace(one, start=max(0, one.start - before), end=one.end - before)
            for one in verdict.findings
            if one.end > before
        ]
        end = min([end, *(one.start for one in findings if one.start < end < one.end)])
        settled = [one for one in findings if one.end <= end]
        blocking = next((one for one in settled if one.category in verdict.blocked), None)
        if blocking:
            end, settled = blocking.start, [one for one in settled if one.end <= blocking.start]
        shown = redact(self._held[:end], settled)
        self._context = (self._context + self._held[:end])[-_CONTEXT:]
        self._held = self._held[end:]
        self.blocked = blocking is not None
        if shown or blocking:
            self._on_text(shown + (notice(blocking.category) if blocking else ""))


def notice(category: str) -> str:
    """Return what stands in place of a blocked text."""
    return f"[blocked: {category}]"


def shown_text(verdict: FilterVerdict, text: str) -> str:
    """Return a whole text as it may be shown: redacted where it is flagged, a notice where it is blocked."""
    if verdict.verdict == "block" and verdict.decisive:
        return notice(verdict.decisive.category)
    return redact(text, verdict.findings)


def _in_token(character: str) -> bool:
    return "!" <= character <= "~"
