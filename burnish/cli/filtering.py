"""The verb that filters data, ``filter``, and the filter of what a model writes to the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import AsJson, shown_json, standard_input
from burnish.errors import InputError
from burnish.system.files import LARGEST_TEXT
from burnish.system.parsing import json_of, opened_file

if TYPE_CHECKING:
    from burnish.safety.filter.content_filter import ContentFilter
    from burnish.safety.filter.verdict import FilterVerdict

verbs = typer.Typer(rich_markup_mode=None)

FilterPolicyName = Annotated[
    str | None,
    typer.Option("--filter", metavar="POLICY", help="Filter the text: a policy in TOML, or 'default'."),
]


@verbs.command("filter")
def filter_texts(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Texts, one per line, or .jsonl; - is standard input.")],
    field: Annotated[
        str | None, typer.Option(help="The field of JSON lines that has the text.  [default: text, in .jsonl]")
    ] = None,
    policy: Annotated[str, typer.Option(help="A policy in TOML, or 'default'.")] = "default",
    json: AsJson = False,
) -> None:
    """Find profanity, threats, personal data and secrets in texts."""
    from burnish.safety.filter.content_filter import load_filter

    content_filter = load_filter(policy)
    counts: Counter[str] = Counter()
    for position, text in read_texts(file, field):
        verdict = content_filter.check(text)
        counts[verdict.verdict] += 1
        if json:
            print(shown_json(verdict.row()))
        elif verdict.findings:
            print(_line(position, text, verdict))
    if not json:
        total = sum(counts.values())
        print(f"{total} texts: {counts['block']} blocked, {counts['flag']} flagged, {counts['allow']} allowed")


def read_texts(file: str, field: str | None) -> Iterator[tuple[str, str]]:
    """Yield the position and the text of each line. Raises InputError if one has no text."""
    from burnish.data.fields import field as value_at
    from burnish.system.paths import expanded

    path = Path(file) if file == "-" else expanded(file)
    rows = field is not None or path.suffix.lower() in (".jsonl", ".ndjson")
    for number, line in enumerate(_lines(path), start=1):
        position = f"line {number}"
        if not rows:
            yield position, line
            continue
        if not line.strip():
            continue
        try:
            row = json_of(line)
            value = value_at(row, field or "text")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, {position}: {' '.join(str(error).split())}; see --field") from error
        if not isinstance(value, str):
            raise InputError(f"{file}, {position}: '{field or 'text'}' is not a text: name another with --field")
        yield position, value


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, or of standard input for "-", without their line breaks."""
    where = "standard input" if str(path) == "-" else str(path)
    try:
        with standard_input() if where == "standard input" else opened_file(path) as file:
            for number, line in enumerate(iter(partial(file.readline, LARGEST_TEXT + 1), b""), start=1):
                if len(line) > LARGEST_TEXT:
                    raise InputError(f"{where}, line {number}: more than {LARGEST_TEXT:,} bytes")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}, line {number}: not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error


def _line(position: str, text: str, verdict: FilterVerdict) -> str:
    """Return a text's row of the table: verdict, score, categories, and what was found, secrets shortened."""
    from burnish.reports.wording import printable

    found = []
    for finding in verdict.findings[:4]:
        part = text[finding.start : finding.end]
        found.append(part[:3] + "..." if finding.layer == "patterns" else part[:30])
    score = verdict.decisive.score if verdict.decisive else 0.0
    categories = ", ".join(verdict.categories)
    return f"{position:10} {verdict.verdict:6} {score:.2f}  {categories:20} {printable(', '.join(found))}"


def chosen_filter(policy: str | None) -> ContentFilter | None:
    """Return the filter of ``--filter``, or None. Raises InputError if the policy is not valid."""
    if policy is None:
        return None
    from burnish.safety.filter.content_filter import load_filter

    return load_filter(policy)


class FilteredOutput:
    """Printer of a model's text while it is sampled, through a filter if there is one; ``text`` is what was printed."""

    def __init__(self, content_filter: ContentFilter | None) -> None:
        self.text = ""
        self._stream = None
        if content_filter is not None:
            from burnish.safety.filter.streaming import FilteredStream

            self._stream = FilteredStream(content_filter, self._print)

    def update(self, piece: str) -> None:
        """Print a piece, or what the filter passes on."""
        (self._stream.update if self._stream else self._print)(piece)

    def finish(self) -> None:
        """Print what the filter held back."""
        if self._stream:
            self._stream.finish()

    def _print(self, piece: str) -> None:
        self.text += piece
        print_piece(piece)


def filtered_row(text: str, content_filter: ContentFilter | None) -> dict[str, Any]:
    """Return a whole text as it may be shown, with the verdict on it if there is a filter."""
    if content_filter is None:
        return {"text": text}
    from burnish.safety.filter.streaming import shown_text

    verdict = content_filter.check(text)
    return {"text": shown_text(verdict, text), "verdict": verdict.verdict, "categories": verdict.categories}


def terminal_text(text: str) -> str:
    """Return a model's text with the control characters escaped that would reach the terminal."""
    from burnish.reports.wording import printable

    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def print_piece(text: str) -> None:
    """Print a piece of a model's text at once."""
    print(terminal_text(text), end="", flush=True)
