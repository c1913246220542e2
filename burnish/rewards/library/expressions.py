"""Equality of mathematical answers: numbers, texts, lists, sets, tuples and intervals here, expressions by math-verify.

Math-verify compares a tuple with a set, drops units and may compute for minutes. So collections are taken apart and
numbers and words compared first; the rest goes to a process with limits of time and memory.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from burnish.errors import BurnishError
from burnish.rewards.library.quantities import equal_quantities, read_quantity, strip_markup, unit_base

SECONDS = 5.0
"""Time for one comparison; an answer that takes longer is wrong."""
START_SECONDS = 60.0
MEMORY = 2 << 30
LONGEST_LIST = 50
DEEPEST = 12
"""Brackets within brackets of an answer: math-verify needs a second to read as many, and minutes for some more."""

_IGNORED = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|[Bb]igg?[lr]?|limits)(?![A-Za-z])|(?<!\\)\\[,!;: ]|\\quad\b|~"
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|textit|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"(?:[^\W\d_]|[\s'’.,&-])+")
_WORD = re.compile(r"[^\W\d_]{3}")
_SEPARATOR = re.compile(r"\s*(?:[,;，、]|\\text\s*\{\s*,?\s*(?:or|and)\s*\}|\b(?:or|and)\b)\s*")
_ASSIGNED = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?|\\[a-z]+)\s*=\s*([^=<>]+)")
_UNIT = re.compile(r"(.*[^\s].*?)\s*\\(?:text|mathrm|mbox)\s*\{([^{}]+)\}(\^[23])?", re.S)
"""An expression and its unit."""
_BASED = re.compile(r"-?[\dA-F]+_\d+")


def equal_answers(answer: str, gold: str) -> bool:
    """Return whether two answers are the same; a list in any order, a tuple or interval in its own."""
    answer, gold = _normalised(answer), _normalised(gold)
    if answer == gold:
        return bool(gold)
    if max(_depth(answer), _depth(gold)) > DEEPEST:
        return False
    assigned, expected = _ASSIGNED.fullmatch(answer), _ASSIGNED.fullmatch(gold)
    if assigned and expected:
        return assigned[1] == expected[1] and equal_answers(assigned[2], expected[2])
    # math-verify drops the base of a numeral and the case of a letter.
    if _BASED.fullmatch(answer) or _BASED.fullmatch(gold) or (len(answer) == len(gold) == 1 and answer.isalpha()):
        return False
    first, second = read_quantity(answer), read_quantity(gold)
    if first is not None and second is not None:
        return equal_quantities(first, second)
    texts = [_words(text) for text in (answer, gold)]
    if any(texts):
        return texts[0] == texts[1]
    (kind, parts), (gold_kind, gold_parts) = _structure(answer), _structure(gold)
    if "scalar" in (kind, gold_kind):
        if {kind, gold_kind} & {"list", r"\{\}"} and not (len(parts) == len(gold_parts) == 1):
            return False
        units = [_UNIT.fullmatch(text) for text in (answer, gold)]
        if all(units) and len({unit_base(f"{unit[2].strip()}{unit[3] or ''}") for unit in units if unit}) > 1:
            return False
        answer, gold = (unit[1] if unit else text for unit, text in zip(units, (answer, gold), strict=True))
        # math-verify accepts an interval for an inequality, but not the reverse.
        return _equal_expressions(gold, answer) or (kind != gold_kind and _equal_expressions(answer, gold))
    unordered = {"list", r"\{\}"}
    if kind != gold_kind and not {kind, gold_kind} <= unordered:
        return False
    if max(len(parts), len(gold_parts)) > LONGEST_LIST:
        return False
    names = {match[1] for part in gold_parts if (match := _ASSIGNED.fullmatch(part))}
    ordered = kind not in unordered or (len(names) > 1 and not any(map(_ASSIGNED.fullmatch, parts)))
    if ordered:
        return len(parts) == len(gold_parts) and all(map(equal_answers, parts, gold_parts))
    return _covers(parts, gold_parts) and _covers(gold_parts, parts, lambda one, other: equal_answers(other, one))


def _covers(parts: Sequence[str], others: Sequence[str], same: Callable[[str, str], bool] = equal_answers) -> bool:
    return all(any(same(part, other) for other in others) for part in parts)


def _normalised(text: str) -> str:
    text = strip_markup(_IGNORED.sub(" ", text.replace("\u2212", "-").replace("−", "-")))
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text).replace("±", r"\pm ")
    text = text.replace(r"\lbrace", r"\{").replace(r"\rbrace", r"\}").replace(r"\ne ", r"\neq ")
    text = re.sub(r"\s*(&|\\\\)\s*", r"\1", text)
    text = re.sub(r"_\{(\w+)\}", r"_\1", text)
    text = re.sub(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}|∅", r"\\emptyset", text)
    for plain, command in (("π", r"\pi "), ("∞", r"\infty "), ("≤", r"\leq "), ("≥", r"\geq "), ("√", r"\sqrt ")):
        text = text.replace(plain, command)
    return " ".join(text.split())


def _words(text: str) -> str:
    """Return a text of words alone in lower case; "" if it is mathematics."""
    text = " ".join(_TEXT.sub(r" \1 ", text).split())
    return text.casefold().strip(" .") if _WORDS.fullmatch(text) and _WORD.search(text) else ""


def _structure(text: str) -> tuple[str, list[str]]:
    """Return the kind of a collection, by its brackets, or "list" or "scalar", and its parts."""
    parts = [each for part in _split(text) for each in _signs(part)]
    if len(parts) > 1:
        return "list", parts
    for opened in (r"\{", "(", "["):
        for closed in (r"\}", ")", "]"):
            if (opened == r"\{") == (closed == r"\}") and text.startswith(opened) and text.endswith(closed):
                inner = _split(text[len(opened) : -len(closed)])
                if _closes_at_end(text) and (len(inner) > 1 or opened == r"\{"):
                    inner = [each for part in inner for each in _signs(part)] if opened == r"\{" else inner
                    return opened + closed, inner
    return "scalar", parts


def _signs(part: str) -> list[str]:
    return [part.replace(r"\pm", sign) for sign in "+-"] if part.count(r"\pm") == 1 else [part]


def _split(text: str) -> list[str]:
    """Return the parts of a list between separators outside brackets; commas of thousands do not separate."""
    parts, start, index, level = [], 0, 0, 0
    while index < len(text):
        separator = None if level else _SEPARATOR.match(text, index)
        if separator:
            parts.append(text[start:index])
            start = index = separator.end()
            continue
        if text[index] == "\\" and text[index + 1 : index + 2] not in ("{", "}"):
            index += 1
            while index < len(text) and text[index].isalpha():
                index += 1
            continue
        level += (text[index] in "([{") - (text[index] in ")]}")
        index += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _depth(text: str) -> int:
    """Return how many brackets are open at once, at most."""
    levels = accumulate((character in "([{") - (character in ")]}") for character in text)
    return max(levels, default=0)


def _closes_at_end(text: str) -> bool:
    level = 0
    for index, character in enumerate(text):
        level += (character in "([{") - (character in ")]}")
        if level == 0 and character != "\\":
            return index == len(text) - 1
    return False


# math-verify --------------------------------------------------------------------------------------------------------


def _equal_expressions(gold: str, answer: str) -> bool:
    # Math-verify misreads a matrix whose rows begin with a space.
    gold, answer = (re.sub(r"\s+(?![A-Za-z])|(?<![A-Za-z])\s+|\$", "", text) for text in (gold, answer))
    return gold == answer or _math_verify(gold, answer)


@lru_cache(maxsize=4096)
def _math_verify(gold: str, answer: str) -> bool:
    return _worker.equal(gold, answer)


class _Worker:
    """A process of ``math_worker``, started at the first question and again after it was ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0

    def equal(self, gold: str, answer: str) -> bool:
        with self.lock:
            if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                self._start()
            reply = ""
            try:
                reply = self._ask(json.dumps([gold, answer]))
            finally:
                # A late reply would be read as that to the next question.
                if not reply:
                    self.close()
            return reply == "true"

    def _start(self) -> None:
        self.close()
        self.process, self.owner = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("math_worker.py")), str(MEMORY), f"{SECONDS:g}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        ), os.getpid()  # fmt: skip
        if self._read(START_SECONDS) != "ready":
            self.close()
            raise BurnishError("reward 'math': the process of math-verify did not start")

    def _ask(self, line: str) -> str:
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError:
            return ""
        return self._read(SECONDS)

    def _read(self, seconds: float) -> str:
        """Return the next line; "" if the process ended, or had to be ended because it took too long."""
        assert self.process is not None and self.process.stdout is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            return self.process.stdout.readline().strip()
        finally:
            timer.cancel()

    def close(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None


_worker = _Worker()
atexit.register(_worker.close)
