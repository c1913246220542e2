"""Uses of the filter: the verb, the reward, and ``generate --filter``."""

from __future__ import annotations

import io
import json
import sys

import pytest

from burnish.errors import InputError
from burnish.rewards.combine import Combination
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS
from burnish.safety.filter import patterns
from burnish.safety.filter.content_filter import ContentFilter
from tests.cli.test_app import run
from tests.rewards.completions import answer

CARD = "4111 1111 1111 1111"
TEXTS = ["hello", "bollocks", f"card {CARD}", ""]


class TestVerb:
    def test_texts_of_a_file(self, monkeypatch, capsys, tmp_path) -> None:
        (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        assert run(monkeypatch, "filter", str(tmp_path / "texts.txt")) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:4] for line in lines[:2]] == [
            ["line", "2", "flag", "0.90"], ["line", "3", "block", "0.95"],
        ]  # fmt: skip
        assert lines[2] == "4 texts: 1 blocked, 1 flagged, 2 allowed" and "1111" not in "".join(lines)

    def test_json_lines_have_one_line_each(self, monkeypatch, capsys, tmp_path) -> None:
        rows = "".join(json.dumps({"a": {"b": text}}) + "\n" for text in TEXTS)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
        assert run(monkeypatch, "filter", "-", "--field", "a.b", "--json") == 0
        printed = list(map(json.loads, capsys.readouterr().out.splitlines()))
        assert [row["verdict"] for row in printed] == ["allow", "flag", "block", "allow"]
        assert all(list(row) == ["verdict", "categories", "spans", "score", "layer"] for row in printed)
        assert (printed[0]["score"], printed[0]["layer"]) == (0.0, None)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", b'{"txt": "x"}\n', "line 1: no column 'text' (did you mean 'txt'?)"),
            ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' is not a text: name another with --field"),
            ("a.jsonl", b'{"text"\n', "line 1: "),
            ("a.jsonl", b'["text"]\n', "line 1: "),
            ("a.txt", b"fine\n\xe9\n", "line 2: not UTF-8 text"),
        ],
    )
    def test_a_line_without_a_text_is_named(self, monkeypatch, capsys, tmp_path, name, content, message) -> None:
        (tmp_path / name).write_bytes(content)
        assert run(monkeypatch, "filter", str(tmp_path / name)) == 2
        assert message in capsys.readouterr().err

    def test_missing_file_and_policy(self, monkeypatch, capsys, tmp_path) -> None:
        assert run(monkeypatch, "filter", str(tmp_path / "none.txt")) == 2
        assert "none.txt cannot be read: No such file" in capsys.readouterr().err
        assert run(monkeypatch, "filter", "-", "--policy", str(tmp_path / "none.toml")) == 2
        assert "name a TOML file or 'default'" in capsys.readouterr().err


class TestReward:
    def test_the_verdict_is_a_number_and_findings_are_counted(self) -> None:
        part = Part("content_filter", REWARDS.get("content_filter"))
        scores = Combination([part]).score([answer(text) for text in TEXTS], step=1)
        assert scores.parts["content_filter"].tolist() == [0.0, -0.5, -1.0, 0.0]
        assert scores.counts == {"content_filter/profanity": 1.0, "content_filter/card": 1.0}

    def test_a_gate_holds_other_credit_back(self) -> None:
        parts = [
            Part("content_filter", REWARDS.get("content_filter"), 0.0, gate=-0.5),
            Part("length_band", REWARDS.get("length_band"), options={"low": 0, "high": 9}),
        ]
        total = Combination(parts).score([answer(text) for text in TEXTS[:3]], step=1).total
        assert total.tolist() == [1.0, 1.0, 0.0]

    def test_policy(self, tmp_path) -> None:
        (tmp_path / "p.toml").write_text('[categories.profanity]\naction = "block"\n')
        reward = REWARDS.get("content_filter")
        options = {"policy": str(tmp_path / "p.toml")}
        assert Combination([Part("f", reward, options=options)]).values([answer("bollocks")]) == {"f": [-1.0]}
        with pytest.raises(InputError, match="cannot be read"):
            reward.check_options({"policy": "none.toml"})


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(("action", "shown"), [("flag", "[toxicity]"), ("block", "[blocked: toxicity]")])
def test_generated_text_is_filtered(monkeypatch, capsys, tiny_chat, tmp_path, stream, action, shown) -> None:
    policy = tmp_path / "p.toml"
    judge = 'use = "tests.safety.filter.test_streaming:all_bad"'
    policy.write_text(f'[model]\n{judge}\n[categories.toxicity]\naction = "{action}"\n', encoding="utf-8")
    arguments = ("generate", str(tiny_chat), "who", "--max-new-tokens", "6", stream, "--filter", str(policy))
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == f"{shown}\n"


def test_generated_json_has_the_verdict(monkeypatch, capsys, tiny_chat, tmp_path) -> None:
    arguments = ("generate", str(tiny_chat), "who", "--max-new-tokens", "6", "--json", "--filter")
    assert run(monkeypatch, *arguments, "default") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["verdict"], row["categories"]) == ("allow", [])
    assert run(monkeypatch, *arguments, str(tmp_path / "none.toml")) == 2


@pytest.mark.parametrize("package", ["ahocorasick", "stdnum"])
def test_a_missing_package_is_one_line_with_the_command(package, monkeypatch) -> None:
    patterns._checks.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs a package that is not installed: pip install 'burnish\[safety\]'"):
        ContentFilter().check(CARD)
