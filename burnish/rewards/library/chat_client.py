"""Client of a chat server: parallel questions with retries, a spending cap and a cache."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import BurnishError, one_line
from burnish.rewards.library.whole_time import limited, whole_time
from burnish.system.secrets import without_secrets

if TYPE_CHECKING:
    import httpx

LONGEST_RESPONSE = 1 << 20
"""Bytes of a response that are read; no answer to these questions is longer."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts at most, even if the server asks for more."""
MOST_TOKENS = 1 << 30
"""A larger count of tokens by the server is not believed."""
_RETRIED_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)


@cache
def _certificates() -> Any:
    import ssl  # slow

    return ssl.create_default_context()


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The answer to one question: its text, or None and the problem."""

    text: str | None
    problem: str = ""


@dataclass(slots=True)
class SpendingCap:
    """Questions and tokens that may still be spent; shared by threads."""

    calls: int
    tokens: int
    spent_calls: int = 0
    spent_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_call(self) -> None:
        """Count one question. Raises BurnishError if it would exceed the cap."""
        with self._lock:
            for unit, cap, spent in (
                ("calls", self.calls, self.spent_calls), ("tokens", self.tokens, self.spent_tokens),
            ):  # fmt: skip
                if spent >= cap:
                    raise BurnishError(
                        f"reward 'judge': its {cap:,} {unit} are used up; raise {unit}, or score fewer texts"
                    )
            self.spent_calls += 1

    def count_tokens(self, tokens: int) -> None:
        with self._lock:
            self.spent_tokens += tokens


@dataclass(slots=True)
class Dialect:
    """Parameters that a server accepts, as its refusals teach them; shared by threads.

    OpenAI's reasoning models take no ``max_tokens`` and no ``temperature``, other servers no ``max_completion_tokens``.
    """

    limit: str = "max_completion_tokens"
    temperature: bool = True
    swapped: bool = False

    def write(self, body: bytes) -> dict[str, Any]:
        """Return a question, which has ``max_tokens`` and ``temperature``, as the server takes it."""
        question = json.loads(body)
        question[self.limit] = question.pop("max_tokens")
        if not self.temperature:
            del question["temperature"]
        return dict(question)

    def learn(self, sent: Mapping[str, Any], refusal: str) -> bool:
        """Leave out or rename the parameter that a refusal names. Return whether to send the question again."""
        if "temperature" in refusal and "temperature" in sent:
            self.temperature = False
            return True
        limit = "max_tokens" if "max_tokens" in sent else "max_completion_tokens"
        if limit not in refusal or (self.swapped and self.limit == limit):
            return False
        if self.limit == limit:
            self.limit = "max_completion_tokens" if limit == "max_tokens" else "max_tokens"
            self.swapped = True
        return True


class _FailedAttempt(Exception):
    """One attempt failed. If another may succeed (``retry``), the server asks to wait ``pause`` seconds before it.

    ``refusal`` is the body of a response that says that the question cannot be answered as it was put.
    """

    def __init__(self, problem: str, *, retry: bool = True, pause: float = 0.0, refusal: str = "") -> None:
        super().__init__(problem)
        self.retry, self.pause, self.refusal = retry, pause, refusal


@dataclass(frozen=True, slots=True)
class ChatClient:
    """A chat address that questions are sent to, with the key as a bearer token unless it is empty.

    ``timeout`` is in seconds, for one whole answer. ``backoff`` is the pause in seconds before the first of ``retries``
    further attempts; each later pause is twice as long. ``cache`` is an SQLite file of readable answers.
    """

    url: str
    key: str
    timeout: float
    retries: int
    backoff: float
    parallel: int
    cap: SpendingCap
    cache: Path
    dialect: Dialect = field(default_factory=Dialect)

    def answers(self, bodies: Sequence[bytes], readable: Callable[[str], bool]) -> list[ChatAnswer]:
        """Return one answer per JSON request body, in order. Equal bodies are asked once, cached ones not at all.

        A question is asked again if its answer's text is not ``readable``. Raises BurnishError if a cap is reached, or
        the cache or the proxy cannot be used; earlier answers are kept.
        """
        keys = [hashlib.sha256(self.url.encode("utf-8") + b"\n" + body).hexdigest() for body in bodies]
        with self._open_cache() as store:
            answers: dict[str, ChatAnswer] = {}
            for key in set(keys):
                row = store.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
                if row is not None and readable(str(row[0])):
                    answers[key] = ChatAnswer(str(row[0]))
            missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in answers}

            def keep(key: str, answer: ChatAnswer) -> None:
                answers[key] = answer
                if answer.text is not None:
                    # At once: it is paid for, whatever happens next.
                    store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer.text))
                    store.commit()

            if missing:
                self._ask_all(missing, readable, keep)
        return [answers[key] for key in keys]

    def _ask_all(
        self, bodies: dict[str, bytes], readable: Callable[[str], bool], keep: Callable[[str, ChatAnswer], None]
    ) -> None:
        """Ask in parallel and call ``keep`` with key and answer as answers arrive; after an error, ask nothing more."""
        stop = threading.Event()
        with self._connections() as http, ThreadPoolExecutor(self.parallel) as threads:
            futures = {threads.submit(self._ask, http, body, readable, stop): key for key, body in bodies.items()}
            try:
                for future in as_completed(futures):
                    keep(futures[future], future.result())
            except BaseException:
                stop.set()
                for future in futures:
                    future.cancel()
                raise

    def _connections(self) -> httpx.Client:
        import httpx

        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            # Uncompressed, or a small response could fill the memory.
            "Accept-Encoding": "identity",
            "User-Agent": "burnish",
        }
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            client = httpx.Client(
                headers=headers,
                timeout=self.timeout,
                # A redirect would carry the key to another address.
                follow_redirects=False,
                limits=httpx.Limits(max_connections=self.parallel),
                # The system's certificates, where an organisation adds its own; httpx would use those of certifi.
                verify=_certificates(),
            )
        except (ImportError, ValueError) as error:
            problem = self._without_key(one_line(error))
            raise BurnishError(f"reward 'judge': the proxy in the environment cannot be used: {problem}") from error
        return limited(client)

    def _ask(
        self, http: httpx.Client, body: bytes, readable: Callable[[str], bool], stop: threading.Event
    ) -> ChatAnswer:
        """Ask one question, and again while that may help."""
        import tenacity

        exponential = tenacity.wait_exponential(multiplier=self.backoff, max=LONGEST_PAUSE)

        def pause(state: tenacity.RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            wanted = failure.pause if isinstance(failure, _FailedAttempt) else 0.0
            return min(LONGEST_PAUSE, max(exponential(state), wanted))

        def attempt() -> str:
            if stop.is_set():
                raise _FailedAttempt("another question failed", retry=False)
            self.cap.count_call()
            text = self._once(http, body)
            if not readable(text):
                raise _FailedAttempt(f"it answered {_quoted(text)} instead of a number")
            return text

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _FailedAttempt) and error.retry),
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=pause,
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )
        try:
            return ChatAnswer(attempts(attempt))
        except _FailedAttempt as failure:
            suffix = f" (asked {self.retries + 1} times)" if failure.retry and self.retries else ""
            return ChatAnswer(None, f"{failure}{suffix}")

    def _once(self, http: httpx.Client, body: bytes) -> str:
        """Return the text of one answer, asked in the form that the server takes. Raises _FailedAttempt."""
        while True:
            question = self.dialect.write(body)
            try:
                return self._send(http, json.dumps(question, ensure_ascii=False, sort_keys=True).encode("utf-8"))
            except _FailedAttempt as failure:
                if not (failure.refusal and self.dialect.learn(question, failure.refusal)):
                    raise

    def _send(self, http: httpx.Client, body: bytes) -> str:
        import httpx

        deadline = time.monotonic() + self.timeout
        try:
            with whole_time(self.timeout), http.stream("POST", self.url, content=body) as response:
                if not response.is_success:
                    raise self._refusal(response, deadline)
                raw = _read(response, deadline, LONGEST_RESPONSE)
            if time.monotonic() > deadline:
                raise TimeoutError
        except (httpx.TimeoutException, TimeoutError) as error:
            raise _FailedAttempt(f"no answer within {self.timeout:g} seconds") from error
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise _FailedAttempt(f"it cannot be reached ({self._without_key(one_line(error))})") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise _FailedAttempt(f"the answer broke off ({type(error).__name__})") from error
        if len(raw) > LONGEST_RESPONSE:
            raise _FailedAttempt(f"it sent more than {LONGEST_RESPONSE:,} bytes", retry=False)
        return self._text(raw, body)

    def _text(self, raw: bytes, body: bytes) -> str:
        try:
            data = json.loads(raw)
            choice = data["choices"][0]
            text = _content(choice["message"])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            # The server did the work, and will charge for it.
            self.cap.count_tokens((len(body) + len(raw)) // 3)
            raise _FailedAttempt(f"its response is not a chat completion: {self._quoted_response(raw)}") from error
        usage = data.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= MOST_TOKENS:
            tokens = (len(body) + len(str(text))) // 3
        self.cap.count_tokens(tokens)
        if choice.get("finish_reason") == "length":
            raise _FailedAttempt("its answer was cut off at its longest length: raise answer_tokens", retry=False)
        if not isinstance(text, str):
            raise _FailedAttempt("its answer has no text")
        # Before the text is shown or kept. The cache cannot store half a surrogate pair.
        return self._without_key(text.encode("utf-8", "replace").decode("utf-8"))

    def _refusal(self, response: httpx.Response, deadline: float) -> _FailedAttempt:
        import httpx

        status = response.status_code
        if 300 <= status < 400:
            return _FailedAttempt(f"HTTP {status}: it redirects elsewhere; set url to that address", retry=False)
        raw = b""
        try:
            raw = _read(response, deadline, 2000)[:2000]
            quoted = self._quoted_response(raw)
        except httpx.HTTPError:
            quoted = "a body that broke off"
        pause = _pause(response.headers)
        hints = {401: "; check key_env and the key", 403: "; check key_env and the key", 404: "; check url and model"}
        problem = f"HTTP {status}: {quoted}{hints.get(status, '')}"
        refusal = raw.decode("utf-8", "replace") if status in (400, 422) else ""
        return _FailedAttempt(problem, retry=status in _RETRIED_STATUSES, pause=pause, refusal=refusal)

    def _quoted_response(self, raw: bytes) -> str:
        """Return a response in one line. The key is removed before cutting, after which half of it could remain."""
        return _quoted(self._without_key(" ".join(raw.decode("utf-8", "replace").split())[:2000]))

    def _without_key(self, text: str) -> str:
        """Return a text without the key, in whatever spelling, and without passwords of proxies."""
        return without_secrets(without_secrets(text, [self.key]), _passwords(), "(password)")

    @contextmanager
    def _open_cache(self) -> Iterator[sqlite3.Connection]:
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            # Several runs may share the file; each waits for the others' writes.
            with closing(sqlite3.connect(self.cache, timeout=30)) as store:
                store.execute("CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)")
                yield store
        except (sqlite3.Error, OSError) as error:
            raise BurnishError(
                f"reward 'judge': its cache {self.cache} cannot be used ({error}): delete it or set cache to another"
            ) from error


@cache
def _passwords() -> tuple[str, ...]:
    """Return the passwords of the proxies in the environment."""
    from urllib.parse import unquote, urlsplit
    from urllib.request import getproxies  # slow

    found: set[str] = set()
    for address in getproxies().values():
        with suppress(ValueError):
            password = urlsplit(address).password or ""
            found |= {password, unquote(password)} - {""}
    return tuple(found)


def _content(message: Mapping[str, Any]) -> Any:
    """Return the text of a message: its content, the texts of its parts, or else the last line of its reasoning."""
    content = message["content"]
    if isinstance(content, list):
        content = "".join(str(part["text"]) for part in content if part["type"] == "text")
    if isinstance(content, str):
        return content.rpartition("</think>")[2] if content.strip() else content
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if content is None and isinstance(reasoning, str) and reasoning.strip():
        return reasoning.rpartition("</think>")[2].strip().rpartition("\n")[2]
    return content


def _pause(headers: httpx.Headers) -> float:
    """Return the seconds that Retry-After asks for, as a number or until a date; 0 without it."""
    wanted = headers.get("Retry-After", "")
    try:
        return max(0.0, float(wanted))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(wanted)
        now = parsedate_to_datetime(headers["Date"]) if "Date" in headers else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def _read(response: httpx.Response, deadline: float, longest: int) -> bytes:
    """Return the body, or its beginning after the deadline or ``longest`` bytes: httpx only limits each single read."""
    raw = bytearray()
    for chunk in response.iter_raw():
        raw += chunk
        if len(raw) > longest or time.monotonic() > deadline:
            break
    return bytes(raw)


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else line[:197] + "...")
