"""The program in a text: the last Python block of Markdown, or the code between prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile

_OPENING = re.compile(r"(?P<indent>\s*(?:(?:[-*+>]|\d+[.)])\s+)*)(?P<fence>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?P<info>.*)")
_PYTHON = re.compile(r"\{?\s*\.?\s*(?:python|py)(?:[23](?:\.\d+)?)?(?![\w+-])", re.I)
_STATEMENT = re.compile(
    r"(?:(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[:(]|import\s+\w|from\s+[\w.]+\s+import\b|@\w|\"\"\"|#!|[A-Za-z_]\w*\s*=[^=])"
)
_PROSE = re.compile(r"[A-Z][\w'’]*,?(?:\s+[\w'’`(),.-]+){2,}|[A-Z][a-z]+[.!:]?$")


def extract_program(text: str) -> str:
    """Return the program in a text: the last Python block, closed or not; else the last block without a language.

    Fences are those of CommonMark: three or more backticks or tildes, closed by at least as many, also indented in a
    list. Text that begins like a program before the first fence is the program. Without any fence, prose before and
    after the code is left out.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    blocks = list(_blocks(lines))
    labelled = [body for info, body in blocks if _PYTHON.match(info)]
    first = next((line for line in lines if line.strip()), "")
    # A model that answers after an opened fence writes only the closing one.
    if _STATEMENT.match(first) and blocks and not labelled:
        return "\n".join(takewhile(lambda line: not _OPENING.fullmatch(line), lines)).strip("\n") + "\n"
    plain = [body for info, body in blocks if not info]
    if labelled or plain:
        return (labelled or plain)[-1]
    return text if blocks else _between_prose(lines, text)


def extract_body(text: str) -> str:
    """Return the lines of a text before the first that is not indented: models continue after a function's end."""
    return "".join(takewhile(lambda line: not line.strip() or line[0].isspace(), text.splitlines(keepends=True)))


def _blocks(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the info string and the text of each fenced block, without the indentation of its fence."""
    index = 0
    while index < len(lines):
        opening = _OPENING.fullmatch(lines[index])
        index += 1
        if opening is None:
            continue
        fence, width = opening["fence"], len(opening["indent"].expandtabs(4))
        closing = re.compile(rf"[\s>]*{re.escape(fence[0])}{{{len(fence)},}}\s*")
        body: list[str] = []
        while index < len(lines) and not closing.fullmatch(lines[index]):
            body.append(_dedented(lines[index], width))
            index += 1
        closed = index < len(lines)
        index += 1
        yield opening["info"].strip(), "\n".join(body) + ("\n" if closed and body else "")


def _dedented(line: str, width: int) -> str:
    """Return a line without up to ``width`` columns of indentation."""
    line = line.expandtabs(4) if width and line.startswith("\t") else line
    return line[min(width, len(line) - len(line.lstrip(" "))) :]


def _between_prose(lines: list[str], text: str) -> str:
    starts = [index for index, line in enumerate(lines) if _STATEMENT.match(line)]
    if not starts:
        return text
    start, end = starts[0], len(lines)
    if not all(not line.strip() or _PROSE.match(line) for line in lines[:start]):
        start = 0
    while end > start and (not lines[end - 1].strip() or _PROSE.match(lines[end - 1])):
        end -= 1
    return text if (start, end) == (0, len(lines)) else "\n".join(lines[start:end]) + "\n"
