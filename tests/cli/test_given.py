"""Files, streams and folders that a user gives: pipes and devices, repeated keys, odd bytes, and what is printed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import burnish
from burnish.cli.app import app
from burnish.cli.options import read_standard_input, shown_json
from burnish.data.messages import read_conversation
from burnish.errors import InputError
from burnish.recipe.schema import load_recipe
from burnish.system.parsing import json_of, toml_of
from tests.end_to_end.refusals import TOY
from tests.fakes import RecordingObserver


def asked(folder: Path, *arguments: str, stdin: bytes | None = b"", close: bool = False) -> subprocess.CompletedProcess:
    """Run a verb in a process of its own; ``close`` closes its standard input."""
    command = [sys.executable, "-m", "burnish", *arguments]
    before = (lambda: os.close(0)) if close else None
    return subprocess.run(command, cwd=folder, input=None if close else stdin, capture_output=True, preexec_fn=before)


class TestSpecialFiles:
    @pytest.fixture(params=["pipe", "device", "socket"])
    def special(self, request, tmp_path):
        """A name that leads to no regular file."""

        def make(name: str) -> Path:
            path = tmp_path / name
            if request.param == "pipe":
                os.mkfifo(path)
            elif request.param == "device":
                path.symlink_to("/dev/zero")
            else:
                import socket

                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(str(path))
            return path

        return make

    def test_a_recipe(self, special):
        with pytest.raises(InputError, match="is not a regular file; name the recipe's"):
            load_recipe(special("r.toml"))

    def test_data(self, special):
        done = CliRunner().invoke(app, ["check", str(special("rows.jsonl"))])
        assert isinstance(done.exception, InputError) and "not a regular file" in str(done.exception)

    def test_prompts_and_texts(self, special):
        path = special("texts.txt")
        for arguments in (["generate", "nothing", "--file", str(path)], ["filter", str(path)]):
            done = CliRunner().invoke(app, arguments)
            assert isinstance(done.exception, InputError), (arguments, done.exception)
            assert "not a regular file" in str(done.exception) or "cannot be read" in str(done.exception)

    def test_a_policy_of_the_filter(self, special, tmp_path):
        (tmp_path / "x.txt").write_text("x")
        done = CliRunner().invoke(app, ["filter", str(tmp_path / "x.txt"), "--policy", str(special("policy.toml"))])
        assert isinstance(done.exception, InputError), done.exception


class TestRepeatedKeys:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a = 1\nb = 2\na = 3\nc = 4\n", "line 3 sets a key a second time: a = 3"),
            ("[x]\na = 1\n[x]\nb = 2\n", r"line 3 sets a key a second time: \[x\]"),
            ("k = { use = 1, use = 2 }\n", "line 1 sets a key a second time: k = "),
            ("[[r]]\nuse = 1\nuse = 2", "line 3 sets a key a second time: use = 2"),
        ],
    )
    def test_of_toml_are_named(self, text, said):
        with pytest.raises(ValueError, match=said):
            toml_of(text)

    def test_of_a_recipe_and_of_a_policy(self, tmp_path):
        (tmp_path / "r.toml").write_text(TOY.replace('use = "exact"', 'use = "exact"\nweight = 1.0\nweight = 2.0'))
        with pytest.raises(InputError, match=r"r\.toml: not valid TOML: line \d+ sets a key a second time: weight = 2"):
            load_recipe(tmp_path / "r.toml")
        (tmp_path / "p.toml").write_text("[a]\nx = 1\nx = 2\n")
        done = CliRunner().invoke(app, ["filter", "-", "--policy", str(tmp_path / "p.toml")], input="x")
        assert "sets a key a second time: x = 2" in str(done.exception)

    def test_of_json(self, tmp_path):
        assert json_of('{"a": {"b": 1}, "c": [{"b": 2}]}') == {"a": {"b": 1}, "c": [{"b": 2}]}
        with pytest.raises(ValueError, match="the key 'b' occurs twice"):
            json_of('{"a": [{"b": 1, "c": 0, "b": 1}]}')
        with pytest.raises(ValueError, match="the key 'role' occurs twice"):
            read_conversation('[{"role": "user", "content": "x", "role": "system"}]')
        (tmp_path / "t.jsonl").write_text('{"text": "mild", "text": "other"}\n')
        done = CliRunner().invoke(app, ["filter", str(tmp_path / "t.jsonl")])
        assert "line 1: the key 'text' occurs twice" in str(done.exception)


class TestStandardInput:
    @pytest.mark.parametrize("verb", [["score"], ["filter", "-"], ["generate", "nothing"], ["score", "--use", "chrf"]])
    def test_closed(self, tmp_path, verb):
        done = asked(tmp_path, *verb, close=True)
        assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr

    @pytest.mark.parametrize("data", [b"\xff\xfe\x00", "我".encode("gb18030"), b"ok\n\xed\xa0\x80\n"])
    @pytest.mark.parametrize("verb", [["score"], ["filter", "-"], ["generate", "nothing"]])
    def test_not_utf_8(self, verb, data):
        done = CliRunner().invoke(app, verb, input=data)
        assert isinstance(done.exception, InputError) and "not UTF-8 text" in str(done.exception), done.exception

    def test_without_an_end(self, monkeypatch):
        monkeypatch.setattr("burnish.system.files.LARGEST_TEXT", 1000)
        with open("/dev/zero", encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            with pytest.raises(InputError, match="standard input has more than 1,000 bytes"):
                read_standard_input()

    def test_lines_end_as_elsewhere(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\r\n我\u2028b\rc".encode())))
        assert read_standard_input() == "a\n我\u2028b\nc"

    def test_a_line_of_score_is_a_text(self):
        done = CliRunner().invoke(app, ["score", "--json"], input="one\u2028two\n\nthree\n")
        assert [row["text"] for row in json.loads(done.stdout)] == ["one\u2028two", "", "three"]


class TestPrintedJson:
    ODD = "a\x1b[2J\x7f\x85\x9b31m\u202e\u2066x\u2069\u200b\u2028\u2029\ufeff\U000e0041我é\ud83d"

    def test_hides_nothing_and_loses_nothing(self):
        text = shown_json({"t": self.ODD}, indent=1)
        inside = text.replace("\n", "")
        assert all(letter.isprintable() for letter in inside), inside
        assert "我é" in text and "\\udb40\\udc41" in text and "\\u202e" in text and "\\u009b" in text
        assert json.loads(text) == {"t": self.ODD}

    def test_of_the_verbs(self, tmp_path):
        (tmp_path / "t.txt").write_text("damn \x9b\u202e\u200f\n", encoding="utf-8")
        for arguments in (["score", "damn \x9b\u202e", "--json"], ["filter", str(tmp_path / "t.txt"), "--json"]):
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0 and done.stdout.replace("\n", "").isprintable(), (arguments, done.stdout)


class TestRunFolders:
    @pytest.mark.parametrize("option", ["--run-dir", "--resume"])
    @pytest.mark.parametrize("name", ["", " "])
    def test_an_empty_name_is_an_error(self, tmp_path, monkeypatch, option, name):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "r.toml").write_text(TOY)
        arguments = ["r.toml"] if option == "--run-dir" else []
        done = CliRunner().invoke(app, ["train", *arguments, option, name])
        assert isinstance(done.exception, InputError) and f"{option} is empty" in str(done.exception)
        with pytest.raises(InputError, match="is empty: name a folder"):
            burnish.train("r.toml" if arguments else None, **{option[2:].replace("-", "_"): name})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r.toml"]

    @pytest.mark.parametrize("place", [None, "a/b/run", "there/run"])
    @pytest.mark.parametrize("change", ['path = "rows.jsonl"', 'path = "one.jsonl"'])
    def test_nothing_is_left_of_a_run_that_never_began(self, tmp_path, tiny, monkeypatch, place, change):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there").mkdir()
        (tmp_path / "one.jsonl").write_text('{"prompt": "only one"}\n')
        recipe = TOY.replace('use = "tabular"', f'model = "{tiny()}"').replace('use = "toy"', f'use = "data"\n{change}')
        (tmp_path / "r.toml").write_text(recipe.replace('use = "exact"', 'use = "repetition"'))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(burnish.BurnishError):
            burnish.train(tmp_path / "r.toml", run_dir=place, observer=RecordingObserver(), offline=True)
        assert sorted(tmp_path.rglob("*")) == before
