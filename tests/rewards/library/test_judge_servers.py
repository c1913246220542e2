"""The judge and today's servers: refused parameters, thoughts, cut answers, and other kinds of question."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from datetime import timedelta
from email.utils import format_datetime, formatdate, parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from burnish.errors import BurnishError, InputError
from burnish.rewards.combine import Combination
from burnish.rewards.library import chat_client
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS
from burnish.types import Completion, Message, Prompt
from tests.rewards.library import test_judge
from tests.rewards.library.test_judge import Handler, Server, ask, samples, says, status

server = test_judge.server


def refuses(*names: str):
    """Return a reply that refuses parameters as OpenAI does, and else answers 8."""

    def reply(handler: Handler) -> None:
        for name in names:
            if name in handler.body:
                error = {"message": f"Unsupported parameter: '{name}' is not supported with this model.", "param": name}
                return handler.send(400, json.dumps({"error": error}).encode())
        return says("8")(handler)

    return reply


@pytest.mark.parametrize(
    ("refused", "asked", "limit"),
    [
        ((), 1, "max_completion_tokens"),
        (("max_tokens",), 1, "max_completion_tokens"),
        (("temperature",), 2, "max_completion_tokens"),
        (("max_completion_tokens",), 2, "max_tokens"),
        (("max_completion_tokens", "temperature"), 3, "max_tokens"),
    ],
)
def test_a_refused_parameter_is_left_out_from_then_on(server: Server, tmp_path: Path, refused, asked, limit) -> None:
    server.script = [refuses(*refused)]
    assert ask(server, tmp_path, samples("x")) == [0.8] and len(server.seen) == asked
    body = server.seen[-1][2]
    assert body[limit] == 16 and ("temperature" in body) == ("temperature" not in refused)
    assert ask(server, tmp_path, samples("y")) == [0.8] and len(server.seen) == asked + 1


def test_a_server_that_refuses_both_limits_is_asked_twice(server: Server, tmp_path: Path) -> None:
    server.script = [refuses("max_tokens", "max_completion_tokens")]
    with pytest.raises(BurnishError, match=r"HTTP 400: .*Unsupported parameter"):
        ask(server, tmp_path, samples("x"))
    assert len(server.seen) == 2


def message(content: object, reason: str = "stop", **more: object):
    choice = {"finish_reason": reason, "message": {"role": "assistant", "content": content, **more}}
    return lambda handler: handler.send(200, json.dumps({"choices": [choice], "usage": {"total_tokens": 30}}).encode())


@pytest.mark.parametrize(
    "reply",
    [
        message(None, reasoning_content="First 3.\nNo:\n7"),
        message(None, reasoning="Hm.</think>\n7"),
        message("<think>perhaps 3</think>\n7"),
        message([{"type": "thinking", "thinking": []}, {"type": "text", "text": "7"}]),
    ],
)
def test_thoughts_and_parts(server: Server, tmp_path: Path, reply) -> None:
    server.script = [reply]
    assert ask(server, tmp_path, samples("x")) == [0.7]


@pytest.mark.parametrize("reply", [message("1", "length"), message(None, "length", reasoning_content="So far\n7")])
def test_a_cut_answer_is_no_score_and_not_cached(server: Server, tmp_path: Path, reply) -> None:
    server.script = [reply, message("10")]
    with pytest.raises(BurnishError, match="cut off at its longest length: raise answer_tokens"):
        ask(server, tmp_path, samples("x"))
    assert len(server.seen) == 1
    assert ask(server, tmp_path, samples("x")) == [1.0]


def test_a_date_is_a_pause(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: (
        real(self, timeout) if timeout is None or timeout < 0.5 else bool(pauses.append(timeout))
    ))  # fmt: skip
    until = format_datetime(parsedate_to_datetime(formatdate(usegmt=True)) + timedelta(seconds=40), usegmt=True)
    server.script = [status(429, Retry_After=until), says("5")]
    assert ask(server, tmp_path, samples("x")) == [0.5]
    assert len(pauses) == 1 and 30 < pauses[0] <= 41


def test_a_date_that_cannot_be_is_no_pause(server: Server, tmp_path: Path) -> None:
    wanted = f"Mon, {10**20} Jan 2024 00:00:00 GMT"
    server.script = [status(429, Retry_After=wanted), says("8")]
    assert ask(server, tmp_path, samples("x")) == [0.8]


def test_the_whole_conversation_is_shown(server: Server, tmp_path: Path) -> None:
    turns = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Why?"))
    ask(server, tmp_path, [Completion(Prompt("p", "Why?", None, {}, turns), (), (), "x", (), "stop")])
    assert "user: Hello\n\nassistant: Hi\n\nuser: Why?" in server.seen[0][2]["messages"][0]["content"]


def test_several_criteria_in_one_call_and_the_cost(server: Server, tmp_path: Path) -> None:
    server.script = [message('{"is true": 10}'), message('```json\n{"is true": 10, "is short": 5}\n```')]
    options = {
        "url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "cache": str(tmp_path / "c"), "backoff": 0.0,
        "criteria": {"is true": 3.0, "is short": 1.0},
    }  # fmt: skip
    scores = Combination([Part("judge", REWARDS.get("judge"), 1.0, options)]).score(samples("x"))
    # (3 * 1.0 + 1 * 0.5) / 4; the first answer lacks a criterion.
    assert scores.total.tolist() == [0.875]
    assert scores.logged == {"judge/is true": (1.0,), "judge/is short": (0.5,)}
    assert scores.counts == {"judge/calls": 2.0, "judge/tokens": 60.0}
    assert "is true; is short" in server.seen[0][2]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("first", "second", "score"), [("A", "B", 1.0), ("B", "A", 0.0), ("A", "A", 0.5), ("C", "b.", 0.75)]
)
def test_pairs_are_asked_in_both_orders(server: Server, tmp_path: Path, first, second, score) -> None:
    def reply(handler: Handler) -> None:
        text = handler.body["messages"][0]["content"]
        says(first if text.index("mine") < text.index("theirs") else second)(handler)

    server.script = [reply]
    assert ask(server, tmp_path, samples("mine", reference="theirs"), pairwise=True) == [score]
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": {"a": 1.0}, "pairwise": True}, "two kinds of question"),
        ({"criteria": {"a": 0}}, "must be a weight above 0"),
    ],
)
def test_options_that_cannot_work(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        REWARDS.get("judge").check_options({"model": "m", **options})


@pytest.mark.parametrize("content", [["7"], [{"text": "7"}], [None], {"text": "7"}, 7])
def test_a_message_of_another_form_is_no_answer(server: Server, tmp_path: Path, content: object) -> None:
    server.script = [message(content)]
    assert ask(server, tmp_path, samples("x"), fallback=0.5) == [0.5]


def test_a_count_of_tokens_that_cannot_be_is_not_believed(server: Server, tmp_path: Path) -> None:
    reply = {"choices": [{"message": {"content": "7"}}], "usage": {"total_tokens": 10**400}}
    server.script = [lambda handler: handler.send(200, json.dumps(reply).encode())]
    assert ask(server, tmp_path, samples("x")) == [0.7]
    assert ask(server, tmp_path, samples("y")) == [0.7]


def test_every_reference_is_shown(server: Server, tmp_path: Path) -> None:
    prompt = Prompt("p", "Q", "Paris", alternatives=("Lutetia",))
    completion = Completion(prompt, (), (), "x", (), "stop")
    server.script = [says("8")]
    assert ask(server, tmp_path, [completion], template="{reference}|{text}") == [0.8]
    (seen,) = server.seen
    assert seen[2]["messages"][0]["content"] == "Paris\n---\nLutetia|x"


def test_pairs_need_references() -> None:
    assert REWARDS.get("judge").needs_reference({"model": "m", "pairwise": True})
    assert not REWARDS.get("judge").needs_reference({"model": "m"})


def dripping(*lines: bytes, between: bytes = b""):
    """Return a reply that sends lines byte by byte, again and again, until the client has enough."""

    def reply(handler: Handler) -> None:
        handler.wfile.write(between)
        while True:
            for byte in b"".join(lines):
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.02)

    return reply


@pytest.mark.parametrize(
    "reply",
    [
        dripping(b"HTTP/1.1 200 OK" + b" " * 10_000), dripping(b"X-More: 1\r\n", between=b"HTTP/1.1 200 OK\r\n"),
        dripping(b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(b"x", between=b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        dripping(b"1\r\n \r\n", between=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        dripping(b"X-More: 1\r\n", between=b"HTTP/1.1 503 Busy\r\n"),
    ],
)  # fmt: skip
def test_one_time_limit_for_all_of_an_answer(server: Server, tmp_path: Path, reply) -> None:
    server.script = [reply]
    with pytest.raises(BurnishError, match=r"no answer within 0\.3 seconds"):
        ask(server, tmp_path, samples("x"), timeout=0.3, retries=0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_limit_holds_for_connections_that_nobody_serves(tmp_path: Path, monkeypatch, scheme: str) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/v1"
        options = {"url": url, "model": "m", "timeout": 0.3, "retries": 0, "cache": str(tmp_path / "c")}
        with pytest.raises(BurnishError, match=r"no answer within 0\.3 seconds"):
            Combination([Part("judge", REWARDS.get("judge"), 1.0, options)]).score(samples("x"))


def test_the_limit_holds_for_the_lookup_of_a_name(tmp_path: Path, monkeypatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait(60))
    monkeypatch.setenv("no_proxy", "*")
    options = {"url": "http://a.test/v1", "model": "m", "timeout": 0.3, "retries": 0, "cache": str(tmp_path / "c")}
    with pytest.raises(BurnishError, match=r"no answer within 0\.3 seconds"):
        Combination([Part("judge", REWARDS.get("judge"), 1.0, options)]).score(samples("x"))
    end.set()


def test_a_connection_is_used_again(server: Server, tmp_path: Path, monkeypatch) -> None:
    made: list[object] = []
    accept = server.get_request
    monkeypatch.setattr(server, "get_request", lambda: made.append(1) or accept())
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    ask(server, tmp_path, samples(*"abcdef"), parallel=1)
    assert len(server.seen) == 6 and len(made) == 1


@pytest.mark.parametrize("code", [200, 401, 500])
@pytest.mark.parametrize(
    "spell",
    [
        str.upper, lambda key: quote(key, safe=""), lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
        lambda key: key[:14] + "…", " ".join, lambda key: key.encode().hex(),
        lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    ],
)  # fmt: skip
def test_no_error_shows_the_key_in_another_spelling(server: Server, tmp_path: Path, monkeypatch, code, spell) -> None:
    key = "sk-Zq7/x+9dLmW3kTp0Rv"
    monkeypatch.setenv("A_KEY", key)
    spelling = spell(key)
    server.script = [says(f"Wrong: {spelling}") if code == 200 else status(code, f"Wrong: {spelling}".encode())]
    with pytest.raises(BurnishError, match="with the key in it") as found:
        ask(server, tmp_path, samples("x"), key_env="A_KEY", retries=0)
    assert spelling[:12] not in str(found.value)


def test_passwords_of_proxies_are_not_shown(tmp_path: Path, monkeypatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    chat_client._passwords.cache_clear()
    monkeypatch.setenv("http_proxy", "ftp://me:pass%20word%2Dlong@127.0.0.1:9")
    options = {"url": "http://a.test/v1", "model": "m", "retries": 0, "cache": str(tmp_path / "c")}
    with pytest.raises(BurnishError, match="proxy in the environment cannot be used") as found:
        Combination([Part("judge", REWARDS.get("judge"), 1.0, options)]).score(samples("x"))
    chat_client._passwords.cache_clear()
    assert "pass" not in str(found.value)
