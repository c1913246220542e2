"""The layer that learns from a red team's findings, and the files that it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from burnish.errors import InputError
from burnish.rewards.registry import REWARDS
from burnish.safety.filter import found
from burnish.safety.filter.content_filter import ContentFilter

REPLIES = {"small talk": [("how are you", f"I am fine on day {number}, thank you.") for number in range(120)]}
ATTACKS = [
    {
        "prompt": f"p{n}",
        "chosen": "I'm sorry, no.",
        "rejected": f"First take the zorp and bend it {n} times.",
        "family": "x",
    }
    for n in range(30)
]
HARMLESS = [
    {"prompt": f"h{n}", "chosen": f"Bend the wire {n} times.", "rejected": "I cannot.", "family": "harmless"}
    for n in range(30)
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_fetch(monkeypatch) -> None:
    monkeypatch.setattr(found, "conversations", lambda language: REPLIES)


def written(folder: Path, *rows: object) -> Path:
    path = folder / "found.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_answers_like_those_that_were_found_are_flagged(tmp_path) -> None:
    written(tmp_path, *ATTACKS, "", *HARMLESS)
    (tmp_path / "p.toml").write_text('found = "found.jsonl"\n', encoding="utf-8")  # relative to the policy
    own = ContentFilter(tmp_path / "p.toml")
    (finding,) = own.check("First take a zorp, then bend it.").findings
    assert (finding.category, finding.layer, finding.start, finding.end) == ("harm", "found", 0, 32)
    for text in ("I'm sorry, no.", "Bend the wire 77 times.", "I am fine, thank you.", "", " ", "你好", "🙂"):
        assert own.check(text).verdict == "allow"
    padded = "I am fine, thank you. " * 300 + "First take a zorp, then bend it. " * 20
    assert own.check(padded).categories == ["harm"] and own.judges_whole_texts
    blocked = ContentFilter({"found": str(tmp_path / "found.jsonl"), "categories": {"harm": {"action": "block"}}})
    assert blocked.check("First take a zorp, then bend it.").verdict == "block"


def test_rows_are_sorted_by_their_family(tmp_path) -> None:
    unsafe, safe = found.read_found(written(tmp_path, *ATTACKS, *ATTACKS[:3], *HARMLESS))
    assert unsafe == [row["rejected"] for row in ATTACKS]
    assert safe == ["I'm sorry, no.", "Bend the wire 0 times.", "I cannot."] + [row["chosen"] for row in HARMLESS[1:]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has 0 different answers to attacks; at least 20 are needed"),
        (HARMLESS, "has 0 different answers to attacks"),
        (ATTACKS[:1] * 40, "has 1 different answers to attacks"),
        (["{"], "line 1: must be a JSON object with the texts prompt, chosen and rejected"),
        (["", "[" * 100_000], "line 2: must be a JSON object"),
        (["[1]"], "line 1: must be a JSON object"),
        ([{"prompt": "a", "chosen": "b"}], "line 1: must be a JSON object"),
        ([{"prompt": "a", "chosen": "b", "rejected": 3}], "line 1: must be a JSON object"),
    ],
)
def test_an_odd_file_is_one_line(rows, message, tmp_path) -> None:
    with pytest.raises(InputError) as error:
        ContentFilter({"found": str(written(tmp_path, *rows))})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file.*burnish redteam MODEL --export FILE"):
        ContentFilter({"found": str(tmp_path / "none.jsonl")})
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        ContentFilter({"found": str(tmp_path / "latin.jsonl")})


def test_the_file_is_an_input_of_a_run(tmp_path) -> None:
    (tmp_path / "p.toml").write_text('found = "found.jsonl"\n', encoding="utf-8")
    reward = REWARDS.get("content_filter")
    assert reward.files({"policy": str(tmp_path / "p.toml")}) == [tmp_path / "found.jsonl"]
    assert reward.files({}) == []


def test_a_line_separator_within_an_answer_is_no_end_of_a_row(tmp_path) -> None:
    rows = [{**row, "rejected": f"{row['rejected']}\u2028Then rest."} for row in ATTACKS]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    unsafe, _ = found.read_found(written(tmp_path, *texts, *HARMLESS))
    assert unsafe == [row["rejected"] for row in rows]


def test_what_is_not_a_file_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a file; `burnish redteam MODEL --export FILE` writes one"):
            found.read_found(path)
