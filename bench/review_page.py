"""Time of the review page's first response with 100,000 items queued, on SQLite and PostgreSQL.

    python -m bench.review_page [ITEMS]

Prints the seconds to queue, and the milliseconds of the first page and of the median of 20 judgements, each with the
page after it. PostgreSQL is Debian's package (apt install postgresql); without it, only SQLite is measured.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from burnish.safety.review.access import csrf_token
from burnish.safety.review.database import open_database
from burnish.safety.review.store import PAIR, ReviewItem, ReviewStore
from tests.safety.review.postgres import postgres, server_is_installed
from tests.safety.review.serving import served

WORDS = "the minister said on Monday that the plan would be put to a vote later this month " * 3


@contextmanager
def databases() -> Iterator[dict[str, str | Path]]:
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, str | Path] = {"SQLite": Path(folder) / "review.sqlite"}
        if not server_is_installed():
            yield files
            return
        with postgres() as url:
            yield files | {"PostgreSQL": url}


def measure(name: str, url: str | Path, count: int) -> None:
    store = ReviewStore(open_database(url))
    begin = time.perf_counter()
    store.add_items(
        ReviewItem(PAIR, "random", f"{number} {WORDS}", (f"one {WORDS}", f"two {WORDS}")) for number in range(count)
    )
    queued = time.perf_counter() - begin
    with served(store) as address, httpx.Client(base_url=address, follow_redirects=True, timeout=60) as client:
        client.get("/static/icon.svg")  # the server and the connection are up
        store.setting("warm", "")
        entered = client.post("/enter", data={"token": store.add_reviewer("ann")}, follow_redirects=False)
        csrf = csrf_token(next(iter(client.cookies.values())))
        assert entered.status_code == 303
        begin = time.perf_counter()
        page = client.get("/").text
        first = time.perf_counter() - begin
        assert f"of {count:,} done" in page
        times = []
        for number in range(20):
            begin = time.perf_counter()
            page = client.post("/judge", data={"csrf": csrf, "item": number + 1, "choice": "tie"}).text
            times.append(time.perf_counter() - begin)
        assert f"20 of {count:,} done" in page
    store.engine.dispose()
    print(
        f"{name:10} {count:,} items queued in {queued:.1f} s; first page {first * 1000:.0f} ms; "
        f"judgement and next page {statistics.median(times) * 1000:.0f} ms"
    )


def main(count: int = 100_000) -> None:
    with databases() as urls:
        for name, url in urls.items():
            measure(name, url, count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
