"""The letter that a text chooses from the options (A) to (J)."""

from __future__ import annotations

import re

from burnish.rewards.library.quantities import strip_markup
from burnish.rewards.library.readings import last_box

LETTERS = "A-J"
_LETTER = (
    rf"(?:\\(?:text|mathrm|mathbf|textbf)\s*\{{\s*)?[\(\[\"'“‘]?\s*(?P<letter>[{LETTERS}]|[a-j](?=[)\].\"'”’}}]|\s*$))"
)
_END = r"(?:[)\]\"'”’}.,:;!]|\s*$|\s*\n|\s+(?![a-z])|\s+(?=because|since|as|is|for|and|or|with)|\s*[-–—(])"
_BARE = re.compile(
    rf"(?:option|choice|answer)?\s*{_LETTER}\s*[)\]}}\"'”’]*\s*(?:[.):\]-]\s*(?P<rest>.*))?", re.S | re.I
)
_SHORT = re.compile(rf"{_LETTER}{_END}", re.S)
_STATEMENT = re.compile(
    r"(?:\b(?:answer|choice|option|solution|pick|choose|select|go\s+with)\b|答案|选|選)"
    r"(?:\s*(?:\*\*|:|=|：|is|was|be|should|would|must|will|option|choice|letter|the|correct|right|best|clearly|therefore"
    rf"|definitely|thus|indeed|是|为|為)){{0,12}}\s*(?:\*\*)?\s*{_LETTER}{_END}",
    re.S | re.I,
)
_SUBJECT = re.compile(
    rf"{_LETTER}[)\]\"'”’}}]*\s+(?:is|must\s+be)\s+(?:the\s+)?(?:correct|right|best|answer|true)\b", re.S
)
_MENTION = re.compile(
    rf"\((?P<in>[{LETTERS}])\)|(?<![A-Za-z'])(?P<bare>[B-HJ])(?![A-Za-z'+#])|(?<![A-Za-z'])(?P<a>A)(?=[.)\]]|$)"
)
_NEGATED = re.compile(
    rf"(?:\b(?i:not|isn[’']t|wasn[’']t|cannot\s+be|can[’']t\s+be|never|rather\s+than|instead\s+of"
    rf"|neither|nor|except|eliminate|rule\s+out)"
    rf"\s+(?:be\s+)?(?:option\s+|choice\s+|answer\s+)?\(?[{LETTERS}]\)?(?![A-Za-z]))"
    rf"|(?:\(?\b[{LETTERS}]\)?\s+(?:is|are|was|seems|looks)(?:\s+(?:\w+ly|not|all|also))*\s*(?:n[’']t\s+)?"
    r"(?:not|wrong|incorrect|false|impossible|excluded|out)\b(?:\s+(?:correct|right|the\s+answer|true))?)"
    rf"|(?:\(?\b[{LETTERS}]\)?\s+(?:isn[’']t|wasn[’']t|cannot|can[’']t)\b[^.\n;,]*)"
)
_SEVERAL = re.compile(
    rf"\(?\b[{LETTERS}][)\"'”’]?\s*(?:,|/|&|\bor\b|\band\b|,\s*and\b)\s*[(\"'“‘]?[{LETTERS}]\b(?!['’]\w)",
    re.S,
)
_KEY = re.compile(r"([\"'])[A-Ja-j]\1\s?:\s?(?:\{[^}]*\}?|\[[^\]]*\]?|\"[^\"]*\"|'[^']*'|[^,}\n]*)")
"""A letter that is a key of an object, as of JSON, with its value."""


_LISTED = re.compile(rf"(?<![A-Za-z'])([{LETTERS}])\)")
"""A letter as an option of a list has it."""


def reference_letter(reference: str) -> str:
    """Return the letter of a reference, "B", "(B)", "B." or "B) Paris"; "" if it is not one."""
    if re.match(r"\s*\{\s*[\"']", reference):  # an object of JSON, whose first key may be a letter
        return ""
    text = _unwrapped(reference)
    match = _BARE.fullmatch(text)
    if match is None or (match["rest"] and _BARE.fullmatch(match["rest"].strip())):
        return ""
    return match["letter"].upper()


def read_choice(text: str) -> str:
    """Return the letter, A to J, that a text chooses; "" if none, or if it could be several."""
    box = last_box(text)
    text = _unwrapped(re.sub(r"</?[A-Za-z_]+>", " ", text) if box is None else box)
    text = re.sub(r"\*\*|__|`|\$", "", text)
    # One line break or space for any number of them: the time of the patterns grows with the cube of their length.
    text = re.sub(r"\s+", lambda space: " " if space[0].splitlines() == [space[0]] else "\n", text)
    text = _KEY.sub(" ", text)
    # A crossed-out letter keeps its sentence: "not B but C".
    text = _NEGATED.sub(" not that ", text)
    text = re.sub(r"\bnot that\s*,?\s*(?:but|it(?:'s| is))\b\s*(?:rather\s+)?", " ", text)
    statements = [*_STATEMENT.finditer(text), *_SUBJECT.finditer(text)]
    if statements:
        last = max(statements, key=lambda match: match.start("letter"))
        sentence = re.split(r"[.\n](?:\s|$)", text[last.start("letter") :], maxsplit=1)[0]
        several = _SEVERAL.match(text, max(0, last.start("letter") - 1)) or _SEVERAL.match(sentence)
        return "" if several else last["letter"].upper()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    alone = _BARE.fullmatch(lines[0])
    if alone and not alone["rest"]:
        return alone["letter"].upper() if _short(lines[-1]) in ("", alone["letter"].upper()) else ""
    mentions = {next(filter(None, match.groups())) for match in _MENTION.finditer(text)}
    ends = {_short(lines[0]), _short(lines[-1])} - {""}
    if len(ends) > 1 or _SEVERAL.search(text):
        return ""
    if ends:
        (letter,) = ends
        listed = {match[1] for match in _LISTED.finditer(text)} | {letter}
        return letter if len(listed) == 1 or (len(lines) > 1 and _short(lines[-1])) else ""
    return mentions.pop() if len(mentions) == 1 else ""


def _short(line: str) -> str:
    match = _SHORT.match(line)
    return match["letter"].upper() if match else ""


def _unwrapped(text: str) -> str:
    text = strip_markup(text)
    return text[:-1] if text.endswith(".") else text
