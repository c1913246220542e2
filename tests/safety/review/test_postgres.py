"""The review on a real PostgreSQL server."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, delete
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from burnish.errors import InputError
from burnish.safety.review.app import make_app
from burnish.safety.review.database import METADATA, open_database
from burnish.safety.review.store import FIRST, PAIR, SECOND, TIE, Answer, AnswerRefused, ReviewItem, ReviewStore
from tests.safety.review.conftest import FakeClock, judge_in_threads, pair, visitor
from tests.safety.review.postgres import postgres, server_is_installed
from tests.safety.review.versions import (
    NEXT_REVISION,
    check_that_the_review_goes_on,
    publish_next_version,
    write_first_version,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not server_is_installed(), reason="NO POSTGRESQL: install postgresql to test a review on it"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture
def store(url: str, clock: FakeClock) -> Iterator[ReviewStore]:
    opened = ReviewStore(open_database(url), clock, lease_seconds=60)
    yield opened
    with opened.engine.begin() as connection:
        for table in reversed(METADATA.sorted_tables):
            connection.execute(delete(table))
    opened.engine.dispose()


def test_the_migrations_make_the_tables_of_the_code(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_servers_that_start_at_once_migrate_once(url, store):
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    failures: list[Exception] = []

    def start() -> None:
        try:
            open_database(url).dispose()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture
def empty(url: str) -> Iterator[Engine]:
    """A connection pool of a database without tables; afterwards it has none again."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    for last in (False, True):
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        if not last:
            yield engine
    engine.dispose()


def test_a_database_of_the_first_version_opens_with_its_judgements(empty, url):
    write_first_version(empty)
    opened = ReviewStore(open_database(url))
    check_that_the_review_goes_on(opened)
    opened.engine.dispose()


def test_the_next_version_opens_a_database_of_this_one_but_not_the_other_way_round(empty, url, tmp_path, monkeypatch):
    open_database(url).dispose()
    write_first_version(empty)
    with monkeypatch.context() as next_version:
        publish_next_version(tmp_path / "versions", next_version)
        opened = ReviewStore(open_database(url))
        check_that_the_review_goes_on(opened)
        opened.engine.dispose()
    with empty.begin() as connection:
        assert connection.exec_driver_sql("SELECT left_at FROM reviewer WHERE name = 'ann'").scalar() == 2.0
    with pytest.raises(InputError, match=rf"of a newer burnish \(revision {NEXT_REVISION}\)") as error:
        open_database(url)
    assert "\n" not in str(error.value)


def test_leases_undo_and_judgements(store, clock):
    store.add_items([pair(1), pair(2)])
    ann, bob = visitor(store, "ann"), visitor(store, "bob")
    first, second = store.next_item(ann), store.next_item(bob)
    assert {first.prompt, second.prompt} == {"prompt 1", "prompt 2"}
    assert store.next_item(visitor(store, "eve")) is None
    store.judge(ann, first.id, Answer(FIRST, (5, None), ("unsafe",)))
    store.judge(ann, first.id, Answer(SECOND))
    assert [one.answer for one in store.judgements()] == [Answer(FIRST, (5, None), ("unsafe",))]
    assert store.undo(ann) and list(store.judgements()) == []
    clock.now += 61
    assert store.next_item(ann).id == first.id
    assert store.next_item(visitor(store, "dan")).id == second.id
    with pytest.raises(AnswerRefused):
        store.judge(bob, second.id, Answer(TIE))


def test_any_text_is_kept(store):
    item = ReviewItem(PAIR, "random", "\x00 \ud83d 你好", ("a\u2028", "\x00"))
    store.add_items([item])
    assert store.next_item(visitor(store, "ann")).texts == item.texts


def test_many_threads_never_judge_the_same_item(store):
    store.add_items(pair(number) for number in range(200))
    judged = judge_in_threads(store, 4)
    assert len(judged) == len(set(judged)) == 200


def test_the_page_is_served(store):
    store.add_items([pair(1)])
    with TestClient(make_app(store), base_url="http://localhost") as client:
        client.post("/enter", data={"token": store.add_reviewer("ann")})
        assert "prompt 1" in client.get("/").text and "0 of 1 done" in client.get("/").text
