"""docs/en/works_as_is.md: its tables of data are the cases of test_shapes, with the lines that burnish writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import InputError
from burnish.tasks.data import DataTask
from tests.data.test_shapes import FILES, LEARNT, PROMPTS, REFUSED, ROWS

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {
    "Conversation": "messages", "PromptCompletion": "prompt, completion", "PreferencePair": "pair",
    "ConversationPair": "pair of messages", "LabelledCompletion": "labelled", "LabelledConversation": "labelled messages",
}  # fmt: skip


def code(text: str, longest: int = 150) -> str:
    return f"`{text if len(text) <= longest else text[:longest] + ' ...'}`"


def plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def beginning(content: bytes) -> str:
    """Return the beginning of a file, with ⏎ for line breaks; empty for one that is not text."""
    try:
        text = content.decode().replace("\n", "⏎")
    except UnicodeDecodeError:
        return ""
    return code(text, 50) if text.isprintable() else ""


def refusal(folder: Path, name: str, content: bytes) -> str:
    """Return the line that refuses a file."""
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        DataTask(path=str(path)).train()
    return str(error.value).replace(str(path), name).replace("\n", " ")


def tables(folder: Path) -> list[list[str]]:
    """Return the rows of each table."""
    files = [f"| {code(name)} | {code(' '.join(row['reference'] for row in ROWS))} |" for name, _ in FILES]
    prompts = [
        f"| {code(plain(row))} | {code(plain(options)) if options else ''} | "
        f"{code(' / '.join(f'{one.role}: {one.content}' for one in asked))} | {' '.join(map(code, answers))} |"
        for _, row, options, asked, answers in PROMPTS
    ]
    learnt = [f"| {code(plain(row))} | {code(KINDS[type(expected).__name__])} |" for _, row, expected in LEARNT]
    refused = [
        f"| {code(name)} | {beginning(content)} | {code(refusal(folder, name, content), 240)} |"
        for name, content, _ in REFUSED
        if name != "deep.json"  # the reason is Python's, and differs between versions
    ]
    return [files, prompts, learnt, refused]


def written(page: str) -> list[list[str]]:
    """Return the rows of each table of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found: Sequence[str] = re.findall(r"^\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    return [rows.splitlines() for rows in found]


@pytest.mark.parametrize("page", ["en/works_as_is.md", "zh/works_as_is.md"])
def test_the_page_has_every_shape_and_its_result(page: str, tmp_path: Path) -> None:
    pytest.importorskip("zstandard", reason="pip install 'burnish[zstd]'")
    assert written(page) == tables(tmp_path)
    assert sum(map(len, tables(tmp_path))) >= 30
