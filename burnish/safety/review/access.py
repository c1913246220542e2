"""Protection of the review page: host names, response headers, sessions and forged requests."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_BODY = 64 * 1024
"""Bytes of a request; an answer has some hundreds."""
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)


class Guard:
    """Middleware that refuses foreign hosts and origins and sets ``HEADERS`` on every response.

    A page of another site that a browser was led to by a changed DNS entry (DNS rebinding) has a foreign host.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(host):
            await PlainTextResponse("unknown host name", 400)(scope, receive, send_with_headers)
        elif scope["method"] not in ("GET", "HEAD") and not _is_own_origin(headers, host):
            await PlainTextResponse("a request from another site", 403)(scope, receive, send_with_headers)
        elif _is_too_large(headers):
            await PlainTextResponse("the request is too large", 413)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _is_known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and match[1].lower().strip("[]") in self.hosts


def _is_own_origin(headers: Headers, host: str) -> bool:
    """Whether a request that changes something comes from this page, or from a program; browsers name the origin."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


def _is_too_large(headers: Headers) -> bool:
    """Whether a body is longer than ``MAX_BODY``, or does not say its length."""
    length = headers.get("content-length", "0")
    return "transfer-encoding" in headers or not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_session(token: str) -> str:
    """Return the value of a session's cookie: the token and what tells this browser from another one."""
    return f"{token}.{secrets.token_urlsafe(9)}"


def csrf_token(session: str) -> str:
    """Return what a form of this session must carry; a foreign page cannot know it."""
    return hmac.new(session.encode(), b"burnish review form", hashlib.sha256).hexdigest()


def is_valid_form(session: str, sent: str) -> bool:
    return hmac.compare_digest(csrf_token(session).encode(), sent.encode("utf-8", "replace"))
