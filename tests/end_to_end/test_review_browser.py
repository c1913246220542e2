"""The review page in a real browser: keys, two reviewers at once, hostile text, narrow windows and accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.safety.review.database import open_database
from burnish.safety.review.store import APPROVE, FIRST, PAIR, REJECT, SECOND, TEXT, TIE, ReviewItem, ReviewStore
from tests.safety.review.conftest import flagged, pair
from tests.safety.review.serving import CHROMIUM, chromium, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: install chromium to test the review page in a browser"),
]

PAYLOADS = (
    "<script>window.pwned={n}</script>", "</script><script>window.pwned={n}</script>",
    "<img src=x onerror=window.pwned={n}>",
    "'\"><svg onload=window.pwned={n}>", "<iframe src=http://example.invalid/{n}></iframe>", "javascript:window.pwned={n}",
    "<style>@import url(http://example.invalid/{n}.css)</style>", "<link rel=stylesheet href=http://example.invalid/{n}>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/{n}'>", "<base href=http://example.invalid/{n}/>",
    "<form action=http://example.invalid/{n}><button>Approve</button></form>", "{{{{ 7*{n} }}}}{{% raw %}}", "<!--{n}",
    "</textarea></title></style><img src=http://example.invalid/{n}>", "<a href='javascript:window.pwned={n}'>x</a>",
    "<object data=http://example.invalid/{n}></object>", "<video><source onerror=window.pwned={n} src=x></video>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned={n}></style>", "\u202eevil\u202c\u2066{n}\u2069",
    "<input autofocus onfocus=window.pwned={n}>", "&lt;script&gt;window.pwned={n}&lt;/script&gt;", "\x00\x1b[2J{n}\ud83d",
    "<details open ontoggle=window.pwned={n}>", "\u2028window.pwned={n}\u2029", "W" * 3000 + "{n}",
)  # fmt: skip
HOSTILE = [PAYLOADS[n % len(PAYLOADS)].format(n=n) for n in range(100)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ReviewStore]:
    opened = ReviewStore(open_database(tmp_path / "review.sqlite"))
    yield opened
    opened.engine.dispose()


class Reader:
    """A reviewer's browser, with its errors and the addresses that it asked for."""

    def __init__(self, browser: Any, store: ReviewStore, address: str, name: str = "ann", **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(120_000)  # a busy machine
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda one: self.errors.append(one.text) if one.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda one: self.requests.append(one.url))
        self.page.goto(f"{address}#{store.add_reviewer(name)}")
        self.page.wait_for_selector(".more")

    def follow(self, selector: str) -> None:
        """Click, and wait for the page that it leads to: a click alone may return while the old one is shown."""
        with self.page.expect_navigation():
            self.page.click(selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.wait_for_selector("html[data-keys=ready]")
            with_new_page = key in "abtynus" or key.startswith("Arrow")
            if with_new_page:
                with self.page.expect_navigation():
                    self.page.keyboard.press(key)
            else:
                self.page.keyboard.press(key)


def shown_text(reader: Reader, side: str) -> str:
    return str(reader.page.locator(f'section[aria-label="Completion {side}"] .text').inner_text())


def test_keys_choose_rate_tag_skip_and_undo(browser, store):
    store.add_items([pair(1), pair(2), flagged(3), flagged(4)])
    with served(store) as address:
        reader = Reader(browser, store, address)
        assert "#" not in reader.page.url
        preferred = shown_text(reader, "B")
        reader.press("4", "Shift+Digit5", "q", "b")
        (one,) = store.judgements()
        index = (FIRST, SECOND).index(one.answer.label)
        assert (one.item.texts[index], one.answer.ratings[index], one.answer.tags) == (preferred, 5, ("unsafe",))
        reader.press("u")
        assert list(store.judgements()) == []
        reader.press("s", "t", "y", "n", "ArrowLeft")
        assert [one.answer.label for one in store.judgements()][1:] == [TIE, APPROVE, REJECT]
        assert "Nothing is left" in reader.page.inner_text("main") and "4 of 4 done" in reader.page.inner_text("main")
        assert reader.errors == []


def test_two_browsers_never_judge_the_same_item(browser, store):
    store.add_items(pair(number) for number in range(12))
    with served(store) as address:
        readers = [Reader(browser, store, address, name) for name in ("ann", "bob")]
        for number in range(12):
            first, second = (reader.page.input_value("[name=item]") for reader in readers) if number < 11 else (0, 1)
            assert first != second
            readers[number % 2].press("t")
        judged = list(store.judgements())
    assert len({one.item.id for one in judged}) == len(judged) == 12
    assert {one.reviewer for one in judged} == {"ann", "bob"}


def test_hostile_text_stays_text(browser, store):
    for number, text in enumerate(HOSTILE):
        messages = ({"role": text, "content": text},) if number % 4 == 1 else ()
        texts = (text, text + "!") if number % 2 else (text,)
        kind = PAIR if number % 2 else TEXT
        store.add_items([ReviewItem(kind, "random", text, texts, messages, {"flags": [text]})])
    with served(store) as address:
        reader = Reader(browser, store, address, viewport={"width": 375, "height": 800})
        for number in range(100):
            page = reader.page
            assert page.evaluate("window.pwned") is None
            foreign = "iframe, object, svg, img, video, math, base, main :is(script, style, link)"
            assert page.locator(foreign).count() == 0
            assert page.evaluate("document.forms.length") == 4
            assert page.evaluate("document.documentElement.scrollWidth") <= 375
            if number == 0:
                assert page.inner_text(".completion .text") == HOSTILE[0]
            with page.expect_navigation():
                page.click("[name=choice] >> nth=0")
        assert len(list(store.judgements())) == 100
        assert reader.errors == []
        assert [url for url in reader.requests if not url.startswith(address)] == []


@pytest.mark.parametrize(
    ("width", "scheme", "locale"), [(1100, "light", "en-GB"), (375, "dark", "en-GB"), (320, "light", "zh-CN")]
)
def test_every_page_is_accessible_and_fits(browser, store, width, scheme, locale):
    from axe_playwright_python.sync_playwright import Axe

    long = ReviewItem(PAIR, "random", "word " * 900, ("short", "long " * 500))
    store.add_items([long, flagged(1)], wanted=lambda item: 2)
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "locale": locale}
    with served(store) as address:
        reader = Reader(browser, store, address, bypass_csp=True, **options)  # axe adds a script of its own
        for step in ("", "t", "y", "progress", "refused", "leave"):
            if step == "progress":
                reader.page.goto(f"{address}progress")
            elif step == "refused":
                reader.page.evaluate("document.querySelector('[name=csrf]').value = 'another session'")
                reader.follow("form[action='/leave'] button")
            elif step == "leave":
                reader.follow("main a")
                reader.follow("form[action='/leave'] button")
            elif step:
                reader.press(step)
            violations = Axe().run(reader.page).response["violations"]
            assert [one for one in violations if one["impact"] in ("serious", "critical")] == []
            assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
        background = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert reader.page.evaluate("document.documentElement.lang") == ("zh-Hans" if locale == "zh-CN" else "en")
