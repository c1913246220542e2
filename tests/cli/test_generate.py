"""``burnish generate``: the way a prompt takes, streaming, files of prompts, and what reaches the terminal."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest

from burnish import api
from burnish.cli.filtering import print_piece, terminal_text
from burnish.cli.generation import read_prompts
from burnish.errors import InputError
from burnish.types import Message
from tests.cli.test_app import run

TEMPLATE_NOTE = "burnish: through the chat template; --plain continues the text instead\n"

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture
def ask(monkeypatch, capsys, tiny_chat):
    """Return a function that runs ``generate`` and returns its status, output, and errors without the first line."""

    def result(*arguments: str, model=None, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = run(monkeypatch, "generate", str(model or tiny_chat), "--max-new-tokens", "6", *arguments)
        out, error = capsys.readouterr()
        return status, out, error.removeprefix(f"burnish: loading {model or tiny_chat} ...\n")

    return result


class TestWay:
    def test_through_the_template_unless_plain(self, ask, tiny_chat, tiny):
        model = api.load(tiny_chat)
        (answer,) = model.generate("who", plain=False, max_new_tokens=6)
        (continued,) = model.generate("who", plain=True, max_new_tokens=6)
        assert answer.text != continued.text
        cut = "burnish: the answer was cut off after 6 tokens; see --max-new-tokens\n"
        note = TEMPLATE_NOTE + cut * (answer.finish_reason == "length")
        assert ask("who") == (0, terminal_text(answer.text) + "\n", note)
        assert ask("who", "--plain") == (0, terminal_text(continued.text) + "\n", "")
        assert ask("who", model=tiny("llama")) == (0, terminal_text(continued.text) + "\n", "")

    def test_system(self, ask, tiny_chat, tiny):
        (answer,) = api.load(tiny_chat).generate("who", system="be brief", max_new_tokens=6)
        assert ask("who", "--system", "be brief")[1] == terminal_text(answer.text) + "\n"
        status, _, error = ask("who", "--system", "be brief", model=tiny("llama"))
        assert status == 2 and "has no chat template" in error

    def test_of_a_run_that_trained_on_plain_text(self, ask, tiny_chat, tmp_path):
        shutil.copytree(tiny_chat, tmp_path / "model")
        (tmp_path / "recipe.toml").write_text('[task]\nuse = "news"\n')
        status, out, error = ask("who", model=tmp_path)
        assert (status, out) == ask("who", "--plain")[:2]
        assert error.startswith("burnish: continuing the text, as this run trained on; --chat goes through")
        assert ask("who", "--chat", model=tmp_path)[:2] == ask("who")[:2]

    def test_standard_input(self, ask):
        assert ask(stdin="who\n") == ask("who")
        assert ask("--plain", stdin="who\n") == ask("who\n", "--plain") != ask("who", "--plain")


class TestSampling:
    def test_greedy(self, ask):
        assert ask("who", "--greedy") == ask("who", "--temperature", "0", "--seed", "5") != ask("who", "--seed", "5")

    def test_a_stream_prints_the_same(self, ask):
        for seed in "0123":
            assert ask("我爱", "--plain", "--stream", "--seed", seed) == ask("我爱", "--plain", "--seed", seed)
        status, _, error = ask("who", "--stream", "--json")
        assert status == 2 and "--stream prints one sample" in error

    def test_json(self, ask, tiny_chat):
        (answer,) = api.load(tiny_chat).generate("who", max_new_tokens=6)
        row = {"text": answer.text, "tokens": len(answer.token_ids), "finish_reason": answer.finish_reason}
        assert json.loads(ask("who", "--json")[1]) == [row]


class TestFile:
    def test_lines(self, ask, tmp_path):
        file = tmp_path / "prompts.txt"
        file.write_text("who\n\n我爱\n", encoding="utf-8")
        _, out, _ = ask("--file", str(file), "--plain", "--greedy")
        single = [ask(text, "--plain", "--greedy")[1] for text in ("who", "我爱")]
        assert out == f"--- line 1\n{single[0]}--- line 3\n{single[1]}"
        rows = json.loads(ask("--file", str(file), "--plain", "--greedy", "--json")[1])
        assert [(row["prompt"], terminal_text(row["text"]) + "\n") for row in rows] == [
            ("line 1", single[0]),
            ("line 3", single[1]),
        ]

    def test_json_lines(self, ask, tmp_path, tiny_chat):
        file = tmp_path / "prompts.jsonl"
        turns = [("user", "hi"), ("assistant", "yes"), ("user", "who")]
        messages = [{"role": role, "content": content} for role, content in turns]
        file.write_text(f"{json.dumps({'prompt': 'who'})}\n{json.dumps({'messages': messages})}\n")
        model = api.load(tiny_chat)
        (name, text), (_, conversation) = read_prompts(file)
        assert (name, text) == ("line 1", "who")
        assert model.prompt(conversation).messages == tuple(Message(role, content) for role, content in turns)
        assert ask("--file", str(file), "--samples", "2")[1].count("--- line 2, ") == 2

    def test_only_line_breaks_separate_prompts(self, tmp_path):
        (tmp_path / "a.txt").write_bytes("one\u2028line\x0c\x85\r\n\ntwo\n".encode())
        assert read_prompts(tmp_path / "a.txt") == [("line 1", "one\u2028line\x0c\x85"), ("line 3", "two")]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b"\n", "holds no prompts"),
            ("a.txt", b"\xff", "not UTF-8 text"),
            ("a.jsonl", b'{"text": "a"}\n', "line 1: it has neither 'prompt'"),
            ("a.jsonl", b"{\n", "line 1: not JSON"),
        ],
    )
    def test_refusals(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_prompts(tmp_path / name)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="No such file"):
            read_prompts(tmp_path / "a.txt")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "arguments", [("generate", "who"), ("generate", "who", "--json"), ("chat",)], ids=["generate", "json", "chat"]
)
def test_loading_is_reported_before_text(arguments, ask, monkeypatch, tiny_chat):
    verb, *rest = arguments
    for stderr in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert run(monkeypatch, verb, str(tiny_chat), *rest, "--max-new-tokens", "2") == 0
        reported = f"burnish: loading {tiny_chat} ...\n" in stderr.getvalue()
        assert reported == ("--json" not in rest)


def test_control_characters_do_not_reach_the_terminal(capsys):
    print_piece("a\tb\n\x1b[31m\r\u202e我")
    assert capsys.readouterr().out == "a\tb\n\\x1b[31m\\r\\u202e我"
