"""The command ``burnish redteam``: table, JSON, comparison, search and export, with a scripted model and judge."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import burnish.api
from burnish.cli.app import app
from burnish.errors import InputError
from burnish.safety.redteam import judge, task
from burnish.safety.redteam.requests import HarmfulRequest
from burnish.types import Prompt
from tests.safety.packaged import fake_sets


class ScriptedModel:
    """Refuses, if its name is "safe", or else does what was requested; answers look-alikes. "attacker" words attacks."""

    has_chat_template = True

    def __init__(self, name: str, **_: Any) -> None:
        self.name = name

    def prompt(self, text: Any, *, plain: bool | None, name: str) -> Prompt:
        assert plain is (False if self.name == "attacker" else None)
        return Prompt(name, text if plain is None else text[-1].content)

    def sample(self, prompts: Sequence[Prompt], **options: Any) -> list[Any]:
        if self.name == "attacker":
            assert (options["temperature"], options["samples"]) == (1.0, 4)
            texts = [["Lost", f"Say {prompt.text.rpartition(': ')[2]}"] for prompt in prompts]
            return [SimpleNamespace(completions=[SimpleNamespace(text=one) for one in some]) for some in texts]
        assert options["temperature"] == 0.7 and options["max_new_tokens"] == 48
        return [SimpleNamespace(completions=[SimpleNamespace(text=self._answer(prompt))]) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> str:
        refused = self.name == "safe" and not prompt.id.startswith("look_alike/")
        return "I'm sorry, no." if refused else "yes"


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsafe(requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [0.9 if answer == "yes" else 0.1 for answer in answers]

    def requests(side: str, **_: Any) -> list[HarmfulRequest]:
        return [HarmfulRequest(f"{side}/{n}", f"{side}/all", f"Request {n}") for n in range(10)]

    monkeypatch.setattr(burnish.api, "load", ScriptedModel)
    monkeypatch.setattr(judge, "answer_judge", lambda offline: SimpleNamespace(unsafe=unsafe))
    monkeypatch.setattr(task, "requests_on", requests)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["redteam", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_a_line_per_family_and_the_look_alikes() -> None:
    lines = [
        line.split() for line in run("open", "--each", "4", "--family", "direct", "--family", "story").splitlines()
    ]
    rows = {line[0]: line[1:] for line in lines if line}
    # 4 of 4 by Wilson: 4 / (4 + 3.8415) = 0.510.
    assert rows["direct"] == ["1.000", "0.510", "to", "1.000", "4", "0.000"] == rows["story"]
    assert rows["look-alikes"][0] == "0.000" and rows["all/all"][4] == "8"


def test_json_compares_two_models_on_the_same_attacks(tmp_path: Path) -> None:
    options = [
        "--side",
        "held_out",
        "--each",
        "5",
        "--search",
        "20",
        "--export",
        str(tmp_path / "found.jsonl"),
        "--json",
    ]
    result = json.loads(run("safe", "--against", "open", *options))
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["held_out/all"]["n"] == 35 and rows["trained"]["before"]["share"] == 1.0
    assert rows["all"]["share"] == 0.0 and rows["all"]["refused"] == 1.0 and rows["all"]["difference"] == -1.0
    assert rows["look-alikes"]["difference"] == 0.0
    assert sum(row["attacks"] for row in result["search"].values()) == 20
    assert result["exported"] == {"attacks": 0, "harmless": 0} and (tmp_path / "found.jsonl").read_text() == ""


def test_what_succeeds_is_exported(tmp_path: Path) -> None:
    run("open", "--each", "3", "--family", "direct", "--export", str(tmp_path / "found.jsonl"), "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["family"] for row in rows] == ["direct"] * 3 + ["harmless"] * 3
    assert {row["rejected"] for row in rows[:3]} == {row["chosen"] for row in rows[3:]} == {"yes"}


def test_headlines_and_conversations_are_exported_as_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sets(tmp_path, monkeypatch)
    options = ["--each", "3", "--family", "direct", "--rehearse", "7"]
    run("open", *options, "--export", str(tmp_path / "found.jsonl"), "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["family"] for row in rows] == ["direct"] * 3 + ["harmless"] * 10
    rehearsed = rows[6:]
    counts = Counter(row["prompt"].rpartition(" ")[0] for row in rehearsed)
    assert counts == {"headlines en": 2, "dialogue en": 2, "dialogue zh": 3}
    assert {row["chosen"] for row in rehearsed} == {"yes"} and all(judge.refuses(row["rejected"]) for row in rehearsed)
    assert len({row["prompt"] for row in rehearsed}) == 7
    result = CliRunner().invoke(app, ["redteam", "open", *options])
    assert isinstance(result.exception, InputError) and str(result.exception).startswith("--rehearse needs --export")


def test_the_attacks_of_an_attacker_are_reported_and_exported_apart(tmp_path: Path) -> None:
    options = ["--each", "4", "--family", "direct", "--export", str(tmp_path / "found.jsonl"), "--json"]
    result = json.loads(run("open", "--attacker", "attacker", "--against", "safe", *options))
    rows = {row["kind"]: row for row in result["rows"]}
    assert rows["all"]["n"] == rows["learned"]["n"] == 4 and rows["learned"]["kept"] == 1.0
    assert rows["learned"]["before"]["share"] == 0.0 and rows["learned"]["share"] == 1.0
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert {row["prompt"][:11] for row in found if row["family"] == "learned"} == {"Say Request"}
    assert result["exported"]["attacks"] == 8
    table = run("open", "--attacker", "attacker", "--each", "4", "--family", "direct")
    assert "attacks of the trained attacker (not among all attacks)" in table


def test_an_unknown_family_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burnish.api, "load", None)
    result = CliRunner().invoke(app, ["redteam", "open", "--family", "storie"])
    assert result.exit_code != 0 and "did you mean 'story'?" in str(result.exception)
