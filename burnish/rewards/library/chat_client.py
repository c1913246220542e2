"""Asking a chat server many questions: in parallel, again where it fails, never beyond a cap, and never one twice."""

from __future__ import annotations

import hashlib
import http.client
import json
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError

LONGEST_ANSWER = 1 << 20
"""Bytes of a response that are read; no answer to these questions is that long."""
LONGEST_PAUSE = 60.0
"""Seconds: a server that asks for a longer pause is asked again after this one."""
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question: the answer's text, or None and what the problem was."""

    text: str | None
    problem: str = ""


@dataclass(slots=True)
class Cap:
    """Questions and tokens that may still be spent; shared by threads."""

    calls: int
    tokens: int
    spent_calls: int = 0
    spent_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        """Counts one question. Raises BurnishError where that is one too many."""
        with self._lock:
            if self.spent_calls >= self.calls:
                raise BurnishError(f"reward 'judge': its {self.calls:,} calls are used up; raise calls, or ask less")
            if self.spent_tokens >= self.tokens:
                raise BurnishError(f"reward 'judge': its {self.tokens:,} tokens are used up; raise tokens, or ask less")
            self.spent_calls += 1

    def spend(self, tokens: int) -> None:
        with self._lock:
            self.spent_tokens += tokens


class _Failed(Exception):
    """One attempt failed; ``again`` says whether another may do better, ``pause`` how long the server wants to be left."""

    def __init__(self, problem: str, *, again: bool = True, pause: float = 0.0) -> None:
        super().__init__(problem)
        self.again, self.pause = again, pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Judge:
    """A chat address that questions are put to.

    Attributes:
        url: of the chat completions.
        key: sent as a bearer token where it is not empty.
        timeout: seconds for one whole answer, however it trickles in.
        retries: further attempts.
        backoff: seconds before the first of them; each later pause is twice as long.
        parallel: questions under way at once.
        cap: what may be spent.
        cache: SQLite file of answers that could be read.
    """

    url: str
    key: str
    timeout: float
    retries: int
    backoff: float
    parallel: int
    cap: Cap
    cache: Path

    def answers(self, bodies: Sequence[bytes], readable: Callable[[str], bool]) -> list[Answer]:
        """One answer a request body, in order; equal bodies are asked once, and known ones not at all.

        Args:
            readable: whether an answer's text is one; where not, it is asked for again.

        Raises:
            BurnishError: a cap is reached, or the cache cannot be used. Answers that came before are kept.
        """
        keys = [self._cache_key(body) for body in bodies]
        with self._open() as store:
            found = {
                key: Answer(text) for key in set(keys) if (text := _known(store, key)) is not None and readable(text)
            }
            wanted = {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}
            with ThreadPoolExecutor(self.parallel) as threads:
                stop = threading.Event()
                running = {threads.submit(self._ask, body, readable, stop): key for key, body in wanted.items()}
                try:
                    for done in as_completed(running):
                        answer = found[running[done]] = done.result()
                        if answer.text is not None:
                            # At once: it is paid for, whatever comes after.
                            store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (running[done], answer.text))
                            store.commit()
                except BaseException:
                    stop.set()
                    for future in running:
                        future.cancel()
                    raise
        return [found[key] for key in keys]

    def _ask(self, body: bytes, readable: Callable[[str], bool], stop: threading.Event) -> Answer:
        problem = ""
        for attempt in range(self.retries + 1):
            self.cap.take()
            try:
                text = self._once(body)
                if readable(text):
                    return Answer(text)
                raise _Failed(f"it answered {_shown(text)}, where a number was asked for")
            except _Failed as failure:
                problem = str(failure)
                if not failure.again:
                    return Answer(None, problem)
                # A power beyond the floats would end the run.
                pause = min(LONGEST_PAUSE, max(self.backoff * 2 ** min(attempt, 64), failure.pause))
                if attempt < self.retries and stop.wait(pause):
                    return Answer(None, problem)
        return Answer(None, problem + (f" (asked {self.retries + 1} times)" if self.retries else ""))

    def _once(self, body: bytes) -> str:
        """The text of one answer. Raises _Failed."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "burnish"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data=body, headers=headers)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with closing(opener.open(request, timeout=self.timeout)) as response:
                raw = _read(response, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except TimeoutError as error:
            raise _Failed(f"no answer within {self.timeout:g} seconds") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Failed(f"no answer within {self.timeout:g} seconds") from error
            raise _Failed(f"it cannot be reached ({error.reason})") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # A ValueError comes of a redirect to what is no address.
            raise _Failed(f"the answer broke off ({type(error).__name__})") from error
        return self._text(raw, body)

    def _text(self, raw: bytes, body: bytes) -> str:
        try:
            data = json.loads(raw)
            text = data["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            # It was sent, and will have been paid for.
            self.cap.spend((len(body) + len(raw)) // 3)
            raise _Failed(f"it sent what is no chat completion: {self._said(raw)}") from error
        usage = data.get("usage")
        counted = usage.get("total_tokens") if isinstance(usage, dict) else None
        if not isinstance(counted, int) or isinstance(counted, bool) or counted < 0:
            counted = (len(body) + len(str(text))) // 3
        self.cap.spend(counted)
        if not isinstance(text, str):
            raise _Failed("its answer holds no text")
        # Before it is shown or kept. Half an emoji is no text to the cache.
        return self._without_key(text.encode("utf-8", "replace").decode("utf-8"))

    def _refused(self, error: urllib.error.HTTPError) -> _Failed:
        with closing(error):
            try:
                said = self._said(error.read(2000))
            except (OSError, http.client.HTTPException):
                said = "nothing"
        pause = error.headers.get("Retry-After", "") if error.headers else ""
        try:
            seconds = max(0.0, float(pause))
        except ValueError:
            # A date; the pause of our own will do.
            seconds = 0.0
        if 300 <= error.code < 400:
            return _Failed(
                f"HTTP {error.code}: it sends on to elsewhere; give the address that it leads to", again=False
            )
        hint = (
            "; check key_env and the key"
            if error.code in (401, 403)
            else "; check url and model"
            if error.code == 404
            else ""
        )
        return _Failed(f"HTTP {error.code}, saying {said}{hint}", again=error.code in _AGAIN, pause=seconds)

    def _said(self, raw: bytes) -> str:
        """What came, in one line; the key is taken out first, since half of one would not be found after cutting."""
        return _shown(self._without_key(raw.decode("utf-8", "replace")))

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "(key)") if self.key else text

    def _cache_key(self, body: bytes) -> str:
        return hashlib.sha256(self.url.encode("utf-8") + b"\n" + body).hexdigest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            # Several runs may share the file; each waits for the other's line.
            with closing(sqlite3.connect(self.cache, timeout=30)) as store:
                store.execute("CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)")
                yield store
        except (sqlite3.Error, OSError) as error:
            raise BurnishError(
                f"reward 'judge': its cache {self.cache} cannot be used ({error}): delete it, or name another with cache"
            ) from error


def _known(store: sqlite3.Connection, key: str) -> str | None:
    row = store.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _read(response: Any, deadline: float) -> bytes:
    """The whole body. A server that sends a byte now and then never runs into the socket's own timeout."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > LONGEST_ANSWER:
            raise _Failed(f"it sent more than {LONGEST_ANSWER:,} bytes", again=False)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else line[:197] + "...")
