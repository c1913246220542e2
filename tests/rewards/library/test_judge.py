"""The judge against a real server on this machine, whose answers are good, bad, late, partial or missing."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from burnish.backends.preflight import check_dependencies
from burnish.errors import BurnishError, InputError
from burnish.recipe.schema import load_recipe
from burnish.rewards.combine import Combination
from burnish.rewards.library import judge as judges
from burnish.rewards.library.chat_client import ChatClient
from burnish.rewards.library.judge import judge, parse_rating
from burnish.rewards.part import Part
from burnish.rewards.registry import REWARDS
from burnish.types import Completion, Prompt
from tests.fakes import RecordingObserver

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            index = len(self.server.seen)
            self.server.seen.append((self.path, dict(self.headers), self.body))
        script = self.server.script
        script[min(index, len(script) - 1)](self)

    def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore errors: these tests close connections during slow answers."""


def says(text: Any, **more: Any) -> Reply:
    data = {"choices": [{"message": {"role": "assistant", "content": text}}], **more}
    return lambda handler: handler.send(200, json.dumps(data).encode())


def status(code: int, body: bytes = b'{"error": "no"}', **headers: str) -> Reply:
    return lambda handler: handler.send(code, body, **headers)


def late(handler: Handler) -> None:
    time.sleep(1.0)
    says("9")(handler)


def trickling(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(30):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def cut_off(handler: Handler) -> None:
    handler.send(200, b'{"choices": [{"message": {"content": "7', length=500)


def hung_up(handler: Handler) -> None:
    handler.connection.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    judges._cap.cache_clear()
    judges._dialect.cache_clear()
    found = Server(("127.0.0.1", 0), Handler)
    found.lock, found.seen, found.script = threading.Lock(), [], [says("8")]
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def samples(*texts: str, prompt: str = "Say it.", reference: str | None = None) -> list[Completion]:
    return [Completion(Prompt("p", prompt, reference), (), (), text, (), "stop") for text in texts]


def ask(server: Server, cache: Path, completions: list[Completion], **options: Any) -> list[float]:
    usual = {"model": "m", "backoff": 0.001, "cache": str(cache / "judge.sqlite"), "parallel": 1, "retries": 2}
    return judge(completions, url=f"http://127.0.0.1:{server.server_port}/v1", **{**usual, **options})


def test_a_number_is_rescaled_and_the_question_follows_the_template(server: Server, tmp_path: Path) -> None:
    server.script = [says("8"), says(" 1.5\n"), says('{"score": 10, "why": "good"}')]
    # 8 of 0 to 10; then of 1 to 5: (1.5 - 1) / 4.
    assert ask(server, tmp_path, samples("A {prompt} \ud83d")) == [0.8]
    assert ask(server, tmp_path, samples("B"), low=1.0, high=5.0) == [0.125]
    assert ask(server, tmp_path, samples("C", reference="我爱你"), template="{reference}|{text}|{prompt}") == [1.0]
    paths, _, bodies = zip(*server.seen, strict=True)
    assert set(paths) == {"/v1/chat/completions"}
    assert bodies[2]["messages"] == [{"role": "user", "content": "我爱你|C|Say it."}]
    assert (bodies[0]["model"], bodies[0]["temperature"]) == ("m", 0)
    # Braces in a text stay, and half a surrogate pair does no harm.
    assert "<text>\nA {prompt} ?\n</text>" in bodies[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("text", "strict", "number"),
    [
        ("7", True, 7.0), ("7.25", True, 7.25), ("7/10", True, None), ("Score: 7", True, None), ("Score: 7", False, 7.0),
        ("First 3, no, 9.", False, 9.0), ("11", True, None), ("11", False, None), ("-1", True, None), ("", True, None),
        ("seven", False, None), ('{"score": "7"}', True, None), ('{"score": true}', True, None), ("{", True, None),
        ("nan", True, None), ("1e9", True, None), ("七", False, None), ('{"score": 1e999}', True, None),
        (f'{{"score": {"9" * 400}}}', True, None),
        # "8/10" is 8; a mark out of another number is on a scale that was not asked for.
        ("8/10", False, 8.0), ("I say 8 out of 10.", False, 8.0), ("7分（满分10分）", False, 7.0), ("4/5", False, None),
        ("First 9/10, then 6 / 10", False, 6.0), ("12/10", False, None), ("7分", False, 7.0),
        # A key is not a mark, and a fence is not part of the answer.
        ('```json\n{"score": 8, "of": 9}\n```', False, 8.0), ('Well: {"score": 8, "step 3": "x"}', False, 8.0),
    ],
)  # fmt: skip
def test_which_texts_are_answers(text: str, strict: bool, number: float | None) -> None:
    assert parse_rating(text, 0.0, 10.0, strict=strict) == number


@pytest.mark.parametrize(
    "bad",
    [
        status(429), status(500), status(503, b"<html>"), cut_off, hung_up, late, trickling,
        status(200, b"not JSON"), status(200, b'{"choices": []}'), status(200, b"[1"), says(None), says("It is good."),
        status(200, b"\xff\xfe"), status(200, b"["* 100_000), says(f'{{"score": {"9" * 400}}}'), says("half: \ud83d"),
    ],
)  # fmt: skip
def test_failed_attempts_are_repeated(server: Server, tmp_path: Path, bad: Reply) -> None:
    server.script = [bad, says("6")]
    slow = bad in (late, trickling)
    # On a busy machine a good answer may be late too.
    assert ask(server, tmp_path, samples("x"), timeout=0.3 if slow else 30.0, retries=9) == [0.6]
    assert len(server.seen) == 2 or (slow and len(server.seen) > 2)


@pytest.mark.parametrize(
    ("bad", "options", "asked", "message"),
    [
        (status(500, b"out of order"), {}, 3, r"HTTP 500: 'out of order' \(asked 3 times\); set fallback"),
        (status(401), {}, 1, "HTTP 401.*check key_env"),
        (status(404), {}, 1, "HTTP 404.*check url and model"),
        (lambda h: h.send(401, b"half", length=500), {}, 1, "HTTP 401: a body that broke off; check key_env"),
        (status(400, b"too long"), {}, 1, "HTTP 400: 'too long'"),
        (status(302, Location="http://127.0.0.1:9/"), {}, 1, "HTTP 302: it redirects elsewhere; set url"),
        (status(302, Location="http://[x/"), {}, 1, "HTTP 302: it redirects elsewhere"),
        (says("Nine out of ten"), {}, 3, "it answered 'Nine out of ten' instead of a number"),
        (late, {"timeout": 0.1, "retries": 0}, 1, "no answer within 0.1 seconds"),
        (trickling, {"timeout": 0.2, "retries": 0}, 1, "no answer within 0.2 seconds"),
        (cut_off, {"retries": 0}, 1, "broke off"),
        (lambda h: h.send(200, b"x" * (2 << 20)), {}, 1, "more than 1,048,576 bytes"),
    ],
)
def test_a_final_failure_is_one_line(server, tmp_path, bad, options, asked, message) -> None:
    server.script = [bad]
    with pytest.raises(BurnishError, match=message) as found:
        ask(server, tmp_path, samples("x"), **options)
    assert len(server.seen) == asked and "\n" not in str(found.value)
    assert ask(server, tmp_path, samples("x"), **options, fallback=0.25) == [0.25]


def test_a_server_without_answers_ends_the_run_despite_a_fallback(server: Server, tmp_path: Path) -> None:
    server.script = [*[status(500, b"out of order")] * 3, says("8")]
    with pytest.raises(BurnishError, match=r"none of 2 questions was answered.*HTTP 500.*fallback is only for some"):
        ask(server, tmp_path, [*samples("a"), *samples("b")], retries=0, fallback=0.5)
    assert sorted(ask(server, tmp_path, [*samples("a"), *samples("b")], retries=0, fallback=0.5)) == [0.5, 0.8]


def test_no_server(server: Server, tmp_path: Path) -> None:
    options = {"model": "m", "cache": str(tmp_path / "c"), "retries": 1, "backoff": 0.0}
    with pytest.raises(BurnishError, match=r"cannot be reached .*asked 2 times"):
        judge(samples("x"), url="http://127.0.0.1:9/v1", **options)


def test_preflight_connects_without_asking(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = RecordingObserver()

    def preflight(url: str, **options: Any) -> None:
        reward = {"use": "judge", "model": "wise", "url": url, **options}
        check_dependencies(load_recipe({"name": "x", "reward": [reward]}), observer)

    here = f"http://127.0.0.1:{server.server_port}/v1"
    preflight(here)
    preflight("http://127.0.0.1:1/v1")
    assert [level for level, _ in observer.messages] == ["info", "warning"] and not server.seen
    assert "no server at http://127.0.0.1:1/v1 (Connection refused)" in observer.texts[1]
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match=r"NO_SUCH_KEY.*does not hold a key"):
        preflight(here, key_env="NO_SUCH_KEY")


def test_pauses_double_and_a_server_may_ask_for_longer_ones(server, tmp_path, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None, real=threading.Event.wait: (
        real(self, timeout) if timeout is None or timeout < 0.5 else bool(pauses.append(timeout))
    ))  # fmt: skip
    longer = [status(429, Retry_After=text) for text in ("7", "9999", "Wed")]
    server.script = [status(500), *longer, says("5")]
    assert ask(server, tmp_path, samples("x"), backoff=1.0, retries=4) == [0.5]
    assert pauses == [1.0, 7.0, 60.0, 8.0]


def test_answers_are_cached_and_failures_are_not(server: Server, tmp_path: Path) -> None:
    server.script = [says("2"), says("nothing"), says("3")]
    with pytest.raises(BurnishError):
        ask(server, tmp_path, samples("a", "b"), retries=0)
    # "a" is cached by now; "b" and the equal text after it are one question.
    assert ask(server, tmp_path, samples("a", "b", "b"), retries=0) == [0.2, 0.3, 0.3]
    assert len(server.seen) == 3
    assert ask(server, tmp_path, samples("b", "a")) == [0.3, 0.2] and len(server.seen) == 3
    # Another model, template or length is another question; another way to parse the answer is not.
    ask(server, tmp_path, samples("a"), model="n")
    assert len(server.seen) == 4
    assert ask(server, tmp_path, samples("a"), strict=False) == [0.2] and len(server.seen) == 4
    with sqlite3.connect(tmp_path / "judge.sqlite") as store:
        assert sorted(row[0] for row in store.execute("SELECT answer FROM answers")) == ["2", "3", "3"]


def test_a_broken_cache_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "judge.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(BurnishError, match=r"cache .* cannot be used"):
        ask(server, tmp_path, samples("a"))
    assert server.seen == []


def test_caps_hold_over_calls_of_the_reward_and_retries_count(server: Server, tmp_path: Path) -> None:
    server.script = [status(500), says("1")]
    assert ask(server, tmp_path, samples("a", "b"), calls=3) == [0.1, 0.1]
    with pytest.raises(BurnishError, match="its 3 calls are used up"):
        ask(server, tmp_path, samples("c"), calls=3, fallback=0.5)
    assert ask(server, tmp_path, samples("a"), calls=3) == [0.1], "cached answers cost nothing"
    assert len(server.seen) == 3
    server.script = [says("1", usage={"total_tokens": 60})]
    with pytest.raises(BurnishError, match="its 100 tokens are used up"):
        ask(server, tmp_path, samples("d", "e", "f"), tokens=100)
    assert len(server.seen) == 5 and ask(server, tmp_path, samples("d", "e"), tokens=100) == [0.1, 0.1]


def test_the_key_comes_from_the_environment_and_is_never_shown(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-123")
    server.script = [says("1"), status(403, b"secret-123 is not welcome")]
    ask(server, tmp_path, samples("a"), key_env="A_KEY")
    ask(server, tmp_path, samples("b"), fallback=0.0)
    assert [headers.get("Authorization") for _, headers, _ in server.seen] == ["Bearer secret-123", None]
    with pytest.raises(BurnishError, match="403") as found:
        ask(server, tmp_path, samples("c"), key_env="A_KEY")
    assert "secret" not in str(found.value) and b"secret" not in (tmp_path / "judge.sqlite").read_bytes()
    monkeypatch.delenv("A_KEY")
    with pytest.raises(InputError, match="A_KEY, named by key_env, does not hold a key"):
        ask(server, tmp_path, samples("a"), key_env="A_KEY")


def test_a_key_in_an_answer_is_removed_before_it_is_cut_or_cached(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-123")
    server.script = [
        says("I know secret-123: 7"), says("x" * 190 + "secret-123"), status(200, b"x" * 190 + b"secret-123"),
        status(403, b"x" * 190 + b"secret-123"),
    ]  # fmt: skip
    assert ask(server, tmp_path, samples("a"), key_env="A_KEY", strict=False) == [0.7]
    assert b"secret" not in (tmp_path / "judge.sqlite").read_bytes()
    for text in "bcd":
        with pytest.raises(BurnishError) as found:
            ask(server, tmp_path, samples(text), key_env="A_KEY", retries=0)
        assert "sec" not in str(found.value)


def test_half_a_surrogate_pair_in_an_answer_is_cached_as_text(server: Server, tmp_path: Path) -> None:
    server.script = [says("\ud83d 7")]
    assert [ask(server, tmp_path, samples("x"), strict=False) for _ in range(2)] == [[0.7], [0.7]]
    assert len(server.seen) == 1


def test_a_thousand_retries_without_a_pause_end(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ChatClient, "_once", lambda *_: "none")
    assert ask(server, tmp_path, samples("x"), retries=1000, backoff=0.0, calls=2000, fallback=0.5) == [0.5]


def test_questions_are_parallel_and_answers_in_order(server: Server, tmp_path: Path) -> None:
    # Each request waits for the others: in sequence they would wait forever.
    meeting = threading.Barrier(4, timeout=10)

    def together(handler: Handler) -> None:
        meeting.wait()
        says(handler.body["messages"][0]["content"])(handler)

    server.script = [together]
    assert ask(server, tmp_path, samples("1", "2", "3", "4"), template="{text}", parallel=4) == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "model is missing"),
        ({"url": "file:///etc/passwd"}, "is not an address"),
        ({"url": "127.0.0.1:8000"}, "is not an address"),
        ({"url": "http://[::1/v1"}, "is not an address"),
        ({"url": "http://host:99999/v1"}, "is not an address"),
        ({"url": "http://a host/v1"}, "is not an address"),
        ({"url": "http://host/路"}, "is not an address"),
        ({"timeout": 1e300}, "timeout = 1e.300: must be at most 86400"),
        ({"parallel": 10**9}, "parallel"),
        ({"url": "https://user:pw@host/v1"}, "only an address"),
        ({"key_env": "sk-abc"}, "never a key"),
        ({"template": "Judge."}, r"does not show \{text\}"),
        ({"template": "{text} {answer}"}, r"has \{answer\}, which is unknown"),
        ({"low": 5.0, "high": 5.0}, "low must be below high"),
        ({"retries": -1}, "retries = -1"),
        ({"calls": 0}, "calls = 0"),
        ({"timeout": 0.0}, "timeout"),
        ({"fallback": 2.0}, "fallback"),
        ({"fallback": "no"}, "fallback"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_recipe(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        REWARDS.get("judge").check_options({"model": "m", **options})


def test_a_template_with_a_reference_needs_one(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompt 'p' has none"):
        ask(server, tmp_path, samples("x"), template="{reference} {text}")


def test_the_judge_as_a_part_of_a_combination(server: Server, tmp_path: Path) -> None:
    options = {"url": f"http://127.0.0.1:{server.server_port}", "model": "m", "cache": str(tmp_path / "c")}
    scores = Combination([Part("judge", REWARDS.get("judge"), 0.5, options)]).score(samples("x", "y"))
    assert scores.total.tolist() == [0.4, 0.4]
