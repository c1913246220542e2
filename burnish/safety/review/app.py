"""The web page on which people judge samples, and the same over JSON for programs."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Form, HTTPException, Request
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from burnish.errors import InputError
from burnish.reports.page.samples import visible
from burnish.safety.review import access
from burnish.safety.review.agreement import measure_agreement
from burnish.safety.review.store import (
    BEST_RATING,
    FIRST,
    LABELS,
    PAIR,
    SECOND,
    TAGS,
    Answer,
    AnswerRefused,
    ReviewItem,
    ReviewStore,
    Visitor,
)
from burnish.safety.review.wording import LANGUAGES, page_words, preferred_language
from burnish.text import mostly_han_or_kana

FOLDER = Path(__file__).parent
STATIC: Mapping[str, str] = {"review.css": "text/css", "review.js": "text/javascript", "icon.svg": "image/svg+xml"}
LONGEST_TEXT = 200_000
"""Characters of a text that are shown."""
LARGEST_ID = 2**31 - 1
"""Of an item, in PostgreSQL's type."""
_SEE_OTHER = 303

router = APIRouter()


def make_app(store: ReviewStore, hosts: Collection[str] = access.LOOPBACK) -> FastAPI:
    """Return the application; ``hosts`` are the names under which it may be reached."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    app.state.seed = store.setting("seed", "0")
    # The ports of a host share their cookies, so each review has a name of its own.
    app.state.cookie = (
        f"review-{hashlib.sha256(store.setting('identity', secrets.token_hex(8)).encode()).hexdigest()[:12]}"
    )
    app.include_router(router)
    _environment().get_template("item.html.j2")  # compiled before the first reviewer waits for it
    app.add_middleware(access.Guard, hosts=hosts)
    app.add_exception_handler(_SignedOut, _show_entrance)
    for kind in (_FormRefused, InputError, RequestValidationError):
        app.add_exception_handler(kind, _show_refusal)
    return app


class _SignedOut(Exception):
    """A request without a valid token."""


class _FormRefused(Exception):
    """A form without its session's own token."""


def _session(request: Request) -> str:
    return str(request.cookies.get(request.app.state.cookie, ""))


def _store(request: Request) -> ReviewStore:
    store: ReviewStore = request.app.state.store
    return store


def _page_visitor(request: Request) -> Visitor:
    token, _, session = _session(request).partition(".")
    if token and (visitor := _store(request).visitor(token, session)):
        return visitor
    raise _SignedOut


def _form_visitor(
    request: Request, visitor: Annotated[Visitor, Depends(_page_visitor)], csrf: Annotated[str, Form()] = ""
) -> Visitor:
    """Return the visitor of a form that carries the session's own token."""
    if not access.is_valid_form(_session(request), csrf):
        raise _FormRefused
    return visitor


def _program_visitor(request: Request) -> Visitor:
    """Return the visitor of an Authorization header, which no browser adds to a forged request."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    visitor = _store(request).visitor(token.strip(), request.headers.get("x-session", ""))
    if scheme.lower() != "bearer" or visitor is None:
        raise HTTPException(401, "send the header Authorization: Bearer TOKEN")
    return visitor


Page = Annotated[Visitor, Depends(_page_visitor)]
Change = Annotated[Visitor, Depends(_form_visitor)]
Program = Annotated[Visitor, Depends(_program_visitor)]


@router.get("/")
def show_next(request: Request, visitor: Page, refused: bool = False) -> Response:
    """Show the visitor's next item."""
    item = _store(request).next_item(visitor)
    shown = _shown(request, item, visitor) if item else ()
    return _render(request, "item.html.j2", visitor=visitor, item=item, shown=shown, refused=refused)


@router.get("/progress")
def show_progress(request: Request, visitor: Page) -> Response:
    judgements = list(_store(request).judgements())
    agreement = {kind: one for kind in LABELS if (one := measure_agreement(judgements, kind))}
    return _render(request, "progress.html.j2", visitor=visitor, agreement=agreement)


@router.post("/judge")
def take_answer(
    request: Request,
    visitor: Change,
    item: Annotated[int, Form(ge=1, le=LARGEST_ID)],
    choice: Annotated[str, Form()],
    rating_left: Annotated[str, Form()] = "",
    rating_right: Annotated[str, Form()] = "",
    tag: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """Record the answer of a form, which names texts by the side on which they were shown."""
    ratings = [int(one) if re.fullmatch("[1-9]", one) else None for one in (rating_left, rating_right)]
    try:
        _record(request, visitor, item, choice, ratings, tag or [])
    except AnswerRefused:
        return RedirectResponse("/?refused=true", _SEE_OTHER)
    return RedirectResponse("/", _SEE_OTHER)


@router.post("/undo")
def take_back(request: Request, visitor: Change) -> Response:
    _store(request).undo(visitor)
    return RedirectResponse("/", _SEE_OTHER)


@router.post("/skip")
def skip_item(request: Request, visitor: Change, item: Annotated[int, Form(ge=1, le=LARGEST_ID)]) -> Response:
    _store(request).skip(visitor, item)
    return RedirectResponse("/", _SEE_OTHER)


@router.post("/enter")
def begin_session(request: Request, token: Annotated[str, Form()]) -> Response:
    """Begin a session."""
    token = token.strip()
    if _store(request).visitor(token, "") is None:
        return _render(request, "entrance.html.j2", status=403, bad_token=True)
    response = RedirectResponse("/", _SEE_OTHER)
    response.set_cookie(request.app.state.cookie, access.new_session(token), httponly=True, samesite="strict")
    return response


@router.post("/leave")
def leave(request: Request, visitor: Change) -> Response:
    response = RedirectResponse("/", _SEE_OTHER)
    response.delete_cookie(request.app.state.cookie, httponly=True, samesite="strict")
    return response


@router.get("/language/{code}")
def choose_language(code: str) -> Response:
    response = RedirectResponse("/", _SEE_OTHER)
    if code in LANGUAGES:
        response.set_cookie("review-language", code, max_age=31_536_000, httponly=True, samesite="strict")
    return response


@router.get("/static/{name}")
def send_file(name: str) -> Response:
    if name not in STATIC:
        raise HTTPException(404)
    return FileResponse(FOLDER / "static" / name, media_type=STATIC[name])


@router.get("/api/next")
def send_next(request: Request, visitor: Program) -> Response:
    """Send the visitor's next item, with its texts as a page would show them; null if none is left."""
    item = _store(request).next_item(visitor)
    if item is None:
        return JSONResponse(None)
    texts = [item.texts[index] for index in _order(request, item, visitor)]
    content = {"id": item.id, "kind": item.kind, "prompt": item.prompt, "messages": item.messages, "texts": texts}
    return JSONResponse(content)


@router.post("/api/judge")
def take_program_answer(
    request: Request,
    visitor: Program,
    item: Annotated[int, Body(ge=1, le=LARGEST_ID)],
    choice: Annotated[str, Body()],
    ratings: Annotated[list[int | None] | None, Body()] = None,
    tags: Annotated[list[str] | None, Body()] = None,
) -> Response:
    """Record an answer: "left", "right" or "tie" of a pair, "approve" or "reject" of a flagged text."""
    try:
        _record(request, visitor, item, choice, ratings or [], tags or [])
    except AnswerRefused as error:
        return JSONResponse({"detail": str(error)}, 409)
    return JSONResponse({"recorded": True})


@router.post("/api/undo")
def take_program_back(request: Request, visitor: Program) -> Response:
    return JSONResponse({"undone": _store(request).undo(visitor)})


@router.get("/api/progress")
def send_progress(request: Request, visitor: Program) -> Response:
    return JSONResponse(asdict(_store(request).progress()))


def _record(
    request: Request, visitor: Visitor, item_id: int, choice: str, ratings: list[int | None], tags: list[str]
) -> None:
    """Translate sides to the item's own texts, and record the answer."""
    store = _store(request)
    item = store.item(item_id)
    order = _order(request, item, visitor)
    label = {"left": (FIRST, SECOND)[order[0]], "right": (SECOND, FIRST)[order[0]]}.get(choice, choice)
    if item.kind == PAIR and choice in (FIRST, SECOND):
        raise InputError("choice: write left, right or tie")
    ratings = ratings[: len(order)]
    sides = [ratings[order.index(index)] for index in range(len(order))] if len(ratings) == len(order) else ratings
    store.judge(visitor, item_id, Answer(label, tuple(sides), tuple(dict.fromkeys(tags))), shown_first=order[0])


def _order(request: Request, item: ReviewItem, visitor: Visitor) -> tuple[int, ...]:
    """Return the indices of an item's texts from left to right: a function of the stored seed, item and reviewer."""
    if item.kind != PAIR:
        return (0,)
    digest = hashlib.sha256(f"{request.app.state.seed} {item.key} {visitor.reviewer_id}".encode()).digest()
    return (0, 1) if digest[0] % 2 == 0 else (1, 0)


def _shown(request: Request, item: ReviewItem, visitor: Visitor) -> list[tuple[str, str]]:
    return [(side, item.texts[index]) for side, index in zip("AB", _order(request, item, visitor), strict=False)]


def _language(request: Request) -> str:
    chosen = request.cookies.get("review-language", "")
    return chosen if chosen in LANGUAGES else preferred_language(request.headers.get("accept-language", ""))


def _render(
    request: Request, template: str, *, status: int = 200, visitor: Visitor | None = None, **values: Any
) -> Response:
    page = _environment().get_template(template).render(
        words=page_words(_language(request)), languages=LANGUAGES, language=_language(request), visitor=visitor,
        csrf=access.csrf_token(_session(request)), progress=_store(request).progress() if visitor else None,
        tags=dict(zip(TAGS, "qwerd", strict=True)), ratings=range(1, BEST_RATING + 1), **values,
    )  # fmt: skip
    return HTMLResponse(page, status)


def _show_entrance(request: Request, error: Exception) -> Response:
    return _render(request, "entrance.html.j2", status=200 if request.method == "GET" else 403, bad_token=False)


async def _show_refusal(request: Request, error: Exception) -> Response:
    """Explain a refused request: to a program as JSON, to a person as a page."""
    if not request.url.path.startswith("/api/"):
        reason, status = (
            str(error) if isinstance(error, InputError) else "",
            403 if isinstance(error, _FormRefused) else 422,
        )
        return _render(request, "refused.html.j2", status=status, reason=reason)
    if isinstance(error, RequestValidationError):
        return await request_validation_exception_handler(request, error)
    return JSONResponse({"detail": str(error)}, 422)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        visible=lambda text: visible(text, LONGEST_TEXT),
        language=lambda text: Markup(' lang="zh"') if mostly_han_or_kana(str(text)) else "",
        percent=lambda share: f"{share:.0%}",
    )
    return environment
