"""The report in a real browser: charts are drawn without a request or an error, and hostile text stays text.

Chromium is controlled through its debugging pipe (file descriptors 3 and 4, JSON messages that end in a NUL byte), which
needs neither a port nor a package.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.reports.page.html import write_report
from tests.reports import synthetic_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: install chromium to test the report in a browser"),
]


HOSTILE = (
    '<script>window.pwned=1</script></script><img src=x onerror="window.pwned=2">\'"><svg onload=window.pwned=3>'
    "<style>@import url(http://example.invalid/x.css)</style><link rel=stylesheet href=http://example.invalid/y.css>"
    "<iframe src=http://example.invalid/></iframe>\u2028{{ 7*7 }} \u202eevil\u202c \x00\x1b[2J \ud83d " + "W" * 3000
)


class Browser:
    """One page in headless Chromium, with its errors and requests."""

    def __init__(self, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
        # A shell maps our ends of the pipes, whatever their numbers, to descriptors 3 and 4.
        redirected = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._sent, self._session = b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that arrive before the answer are recorded."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            chunk = os.read(self._read, 1 << 16) if ready else b""
            assert chunk, "the browser stopped answering"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(params["args"]))

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a page and wait until its charts are drawn or have failed."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **screen)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.as_uri())
        for _ in range(600):
            if self.evaluate("document.readyState == 'complete' && !!document.documentElement.dataset.charts"):
                return
            time.sleep(0.05)
        raise AssertionError(f"no charts after 30 s: {self.errors}")

    def screenshot(self, path: Path) -> None:
        """Save an image of the whole page, for manual inspection."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def open_clean(browser: Browser, page: Path, **options: Any) -> None:
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, **options)


def test_every_chart_is_drawn_without_an_error_or_a_request(browser, tmp_path):
    page = write_report(synthetic_run.write_run(tmp_path))
    open_clean(browser, page)
    assert browser.evaluate("document.documentElement.dataset.charts") == "drawn"
    drawn = browser.evaluate(
        "[...document.querySelectorAll('[data-figure]')].filter(e => !e.closest('details')).map("
        "e => e.querySelectorAll('svg.main-svg .trace path, svg.main-svg .bars path').length)"
    )
    assert len(drawn) >= 15 and min(drawn) > 0
    folded = "document.querySelector('details [data-figure]')"
    assert browser.evaluate(f"{folded}.querySelectorAll('svg').length") == 0
    browser.evaluate(f"{folded}.closest('details').open = true; new Promise(r => setTimeout(r, 300))")
    assert browser.evaluate(f"{folded}.querySelectorAll('svg').length") > 0
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [url for url in browser.requests if url.startswith("file:")] == [page.as_uri()]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (375, "light"), (320, "dark")])
def test_the_page_fits_its_window(browser, tmp_path, width, scheme):
    page = write_report(synthetic_run.write_run(tmp_path))
    open_clean(browser, page, width=width, height=800, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.errors == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_chinese_uses_a_font_that_has_it(browser, tmp_path):
    fonts = subprocess.run(["fc-list", ":lang=zh-cn", "family"], capture_output=True, text=True, check=False).stdout
    if not fonts.strip():
        pytest.skip("NO CHINESE FONT: install fonts-noto-cjk to test Chinese in the report")
    page = write_report(synthetic_run.write_run(tmp_path))
    open_clean(browser, page)
    browser.send("DOM.enable")
    browser.send("CSS.enable")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    nodes = browser.send("DOM.querySelectorAll", nodeId=root, selector='.text[lang="zh"]')["nodeIds"]
    assert nodes and browser.evaluate("document.querySelectorAll('.text:not([lang])').length") > 0
    checked = 0
    for node in nodes:
        used = browser.send("CSS.getPlatformFontsForNode", nodeId=node)["fonts"]
        text = browser.send("DOM.getOuterHTML", nodeId=node)["outerHTML"]
        wanted = sum("\u4e00" <= letter <= "\u9fff" for letter in text)
        if not used:
            continue  # inside a closed fold
        checked += 1
        # The Chinese characters use one of the system's Chinese fonts.
        most = max(used, key=lambda font: font["glyphCount"])
        assert most["glyphCount"] >= wanted and most["familyName"] in fonts, used
    assert checked > 2


def test_hostile_text_stays_text(browser, tmp_path):
    folder = synthetic_run.write_run(tmp_path, steps=3, prompts=4)
    spread_hostile_text(folder)
    open_clean(browser, write_report(folder), width=375, height=800)
    assert browser.evaluate("document.documentElement.dataset.charts") == "drawn"
    assert browser.evaluate("window.pwned") is None
    foreign = "document.querySelectorAll('iframe, main img, main script, main style, main link').length"
    assert browser.evaluate(foreign) == 0
    assert "onload=window.pwned=3>" in browser.evaluate("document.querySelector('.columns .text').textContent")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def spread_hostile_text(folder: Path) -> None:
    """Write hostile text everywhere that a run folder may have text."""
    for when in ("before", "after"):
        path = folder / "evaluation" / f"{when}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["samples"]
        poisoned = {"prompt": HOSTILE, "reference": HOSTILE, "text": HOSTILE, "parts": {HOSTILE: 1.0}}
        synthetic_run.write_json(path, {"samples": [{**row, **poisoned, "prompt_id": HOSTILE} for row in rows]})
    rng = synthetic_run.random.Random(0)
    sample = synthetic_run.sample(3, 0, rng)
    sample |= dict.fromkeys(("prompt_id", "prompt", "completion"), HOSTILE)
    sample |= {"flags": [HOSTILE], "parts": {HOSTILE: 1}}
    synthetic_run.write_lines(folder / "samples.jsonl", [sample])
    synthetic_run.write_lines(folder / "warnings.jsonl", [{"step": 1, "text": HOSTILE}])
    row = synthetic_run.metrics(3, rng)
    synthetic_run.write_lines(folder / "metrics.jsonl", [{**row, f"reward/{HOSTILE}": 1.0, HOSTILE: 2.0}])
    entry = synthetic_run.EVALUATION["bleu"]
    synthetic_run.write_json(folder / "evaluation.json", {f"reward/{HOSTILE}": entry, HOSTILE: entry})
    synthetic_run.write_json(folder / "environment.json", {HOSTILE: {HOSTILE: HOSTILE}})
    recipe = synthetic_run.RECIPE + "\n# " + HOSTILE.replace("\x00", "").replace("\ud83d", "")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
