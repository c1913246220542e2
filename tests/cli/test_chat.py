"""``burnish chat``: history, commands, the length limit, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import pytest

from burnish import api
from burnish.cli import chat, filtering
from burnish.cli.filtering import terminal_text
from burnish.data.formats import RowFormat
from burnish.errors import InputError
from burnish.types import Message
from tests.cli.test_app import run

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture
def session(tiny_chat):
    return chat.Session(api.load(tiny_chat), 6, {"temperature": 0.0})


@pytest.fixture
def talk(monkeypatch, capsys, tiny_chat, tiny):
    """Return a function that pipes lines into ``chat`` and returns its status, output, and errors but the first line."""

    def result(*lines: str, options=(), kind: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        model = tiny(kind) if kind else tiny_chat
        status = run(monkeypatch, "chat", str(model), "--max-new-tokens", "6", "--greedy", *options)
        out, error = capsys.readouterr()
        return status, out, error.removeprefix(f"burnish: loading {model} ...\n")

    return result


class TestHistory:
    def test_an_answer_sees_the_turns_before_it(self, talk, tiny_chat):
        model = api.load(tiny_chat)
        options = {"temperature": 0, "max_new_tokens": 6}
        first = model.chat("who sang", system="be brief", **options)
        history = [Message("user", "who sang"), Message("assistant", first), Message("user", "the crowd")]
        second = model.chat(history, system="be brief", **options)
        status, out, _ = talk("who sang", "", " the crowd ", options=["--system", "be brief"])
        assert (status, out) == (0, terminal_text(f"{first}\n{second}\n"))
        assert second != model.chat("the crowd", system="be brief", **options)

    def test_undo_and_reset(self, talk):
        (_, fresh, _) = talk("the crowd")
        assert talk("who sang", "/undo", "the crowd")[1].endswith(f"\n{fresh}")
        assert talk("who sang", "a", "/reset", "the crowd")[1].endswith(f"\n{fresh}")
        assert "burnish: removed: who sang\n" in talk("who sang", "/undo")[2]
        assert "there is nothing to undo" in talk("/undo")[2]

    def test_system(self, talk):
        (_, told, _) = talk("who", options=["--system", "be brief"])
        assert talk("/system be brief", "who")[1] == told
        assert talk("/system", "who", options=["--system", "be brief"])[1] == talk("who")[1] != told

    def test_quit(self, talk):
        assert talk("/quit", "who")[:2] == (0, "")

    def test_the_answers_of_a_session_have_their_own_random_numbers(self, session, capsys):
        session.options = {}
        for _ in range(2):
            session.take("who")
            session.take("/undo")
        first, second = capsys.readouterr().out.splitlines()[:2]
        assert first != second


class TestSave:
    def test_a_conversation_is_a_row_that_sft_reads(self, session, tmp_path):
        file = tmp_path / "talk.jsonl"
        file.write_text("{}")  # without a line break at its end
        session.take("/system be brief")
        for line in ("who sang 我", "the crowd", f"/save {file}", f"/save {file}"):
            session.take(line)
        lines = file.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "{}" and lines[1] == lines[2] and len(lines) == 3
        row = RowFormat("chat", {}).row(json.loads(lines[1]))
        assert row.messages == tuple(session.messages())
        assert [message.content for message in row.messages][:2] == ["be brief", "who sang 我"]

    def test_refusals(self, session, tmp_path):
        with pytest.raises(InputError, match="nothing to save"):
            session.take(f"/save {tmp_path / 'a'}")
        session.take("who")
        with pytest.raises(InputError, match="needs the name of a file"):
            session.take("/save")
        with pytest.raises(InputError, match="cannot be written: Is a directory"):
            session.take(f"/save {tmp_path}")


class TestLimits:
    def test_the_oldest_turns_are_left_out(self, session, capsys):
        question = "the crowd sang " * 8
        sent: list[int] = []
        for _ in range(6):
            session.take(question)
            turns = session.turns[session.left_out : -1]
            messages = [
                Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            sent.append(session.model.count_tokens(session.model.prompt([*messages, Message("user", question)])))
        assert max(sent) + 6 <= 256 and max(sent) > 150
        assert 1 <= session.left_out < 5 and len(session.turns) == 6
        notes = [line for line in capsys.readouterr().err.splitlines() if "positions" in line]
        assert notes[0] == "burnish: the model has 256 positions; the oldest turns that it no longer sees: 1"

    def test_a_message_that_never_fits_is_refused(self, session):
        with pytest.raises(InputError, match=r"the message has \d+ tokens, and the model has 256 positions, 6 of them"):
            session.take("the crowd sang " * 100)
        assert session.turns == []

    def test_a_model_without_a_template_is_refused(self, talk):
        status, _, error = talk("who", kind="llama")
        assert status == 2 and "has no chat template" in error and "burnish generate" in error

    def test_a_system_message_that_the_template_rejects(self, session, monkeypatch):
        template = (
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{{ m['content'] }}{% endfor %}"
        )
        monkeypatch.setattr(session.model._text_model.tokenizer, "chat_template", template)
        with pytest.raises(InputError, match="no system"):
            session.take("/system be brief")
        assert session.system == ""

    @pytest.mark.parametrize(("line", "message"), [("/sistem a", "there is no command /sistem; /help lists them")])
    def test_an_unknown_command(self, talk, line, message):
        assert talk(line)[::2] == (2, f"burnish: {message}\n")

    def test_help_names_every_command(self, talk):
        error = talk("/help")[2]
        assert all(command in error for command in ("/system", "/undo", "/reset", "/save", "/quit", "Ctrl-C"))


class TestInterrupt:
    def test_ctrl_c_ends_the_answer_and_keeps_it(self, session, capsys, monkeypatch):
        printed = filtering.print_piece
        pieces: list[str] = []

        def print_piece(piece: str) -> None:
            printed(piece)
            pieces.append(piece)
            if len(pieces) == 3:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(filtering, "print_piece", print_piece)
        session.max_new_tokens, session.options = 40, {"temperature": 1.0}
        assert session.take("who sang")
        captured = capsys.readouterr()
        assert len(pieces) == 3
        assert captured.out == terminal_text("".join(pieces)) + "\n" and captured.err == "burnish: stopped\n"
        assert session.turns == [("who sang", "".join(pieces))]
        assert session.take("who sang") and len(session.turns) == 2
