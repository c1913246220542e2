"""One time limit for all of an answer over HTTP: name, connection, TLS, request, headers and body.

httpx limits each single read and write, so a server that sends a byte now and then holds it for ever. The network
backend of httpcore, which httpx is built on, is wrapped: each operation gets what is left of its thread's time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import ssl

    import httpx

T = TypeVar("T")
PIECE = 4096
"""Bytes that are written at once, since a limit holds for one write only."""
_OF_THREAD = threading.local()


@contextmanager
def whole_time(seconds: float) -> Iterator[None]:
    """Limit the time of all network operations of this thread together, with clients of ``limited``."""
    _OF_THREAD.end = time.monotonic() + seconds
    try:
        yield
    finally:
        del _OF_THREAD.end


def limited(client: httpx.Client) -> httpx.Client:
    """Return the client, whose connections, through a proxy too, end with the time of ``whole_time``."""
    for transport in (client._transport, *client._mounts.values()):
        pool: Any = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend)
    return client


def _left(limit: float | None, late: Callable[[], Exception]) -> float | None:
    """Return the seconds for one operation. Raises the exception of ``late`` if there is no time left."""
    end = getattr(_OF_THREAD, "end", None)
    if end is None:
        return limit
    left = float(end) - time.monotonic()
    if left <= 0:
        raise late()
    return left if limit is None else min(limit, left)


def _error(name: str) -> Callable[[], Exception]:
    import httpcore

    return lambda: getattr(httpcore, name)("the time is up")


class _Backend:
    """A network backend whose connections are made, and used, within the time of their thread."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def connect_tcp(self, *arguments: Any, timeout: float | None = None, **options: Any) -> _Stream:
        left = _left(timeout, _error("ConnectTimeout"))
        # Looking up a name has no limit, and each of its addresses is tried for that long.
        return _Stream(_within(left, lambda: self._backend.connect_tcp(*arguments, timeout=left, **options)))

    def connect_unix_socket(self, *arguments: Any, timeout: float | None = None, **options: Any) -> _Stream:
        left = _left(timeout, _error("ConnectTimeout"))
        return _Stream(self._backend.connect_unix_socket(*arguments, timeout=left, **options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return bytes(self._stream.read(max_bytes, _left(timeout, _error("ReadTimeout"))))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE], _left(timeout, _error("WriteTimeout")))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _Stream:
        left = _left(timeout, _error("ConnectTimeout"))
        return _Stream(
            _within(left, lambda: self._stream.start_tls(ssl_context, server_hostname, left), self._stream.close)
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


def _within(seconds: float | None, work: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """Return the result of work in a thread of its own. If it is late, ``stop`` it and raise ConnectTimeout."""
    if seconds is None:
        return work()
    results: list[T] = []
    errors: list[BaseException] = []
    late = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        if late.is_set() and results:
            with suppress(Exception):
                results[0].close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=run, name="connecting", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        late.set()
        stop()
        raise _error("ConnectTimeout")()
    return results[0]
