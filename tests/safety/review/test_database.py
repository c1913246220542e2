from __future__ import annotations

import stat

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, update

from burnish.errors import BurnishError, InputError
from burnish.safety.review.database import ITEMS, METADATA, open_database
from burnish.safety.review.store import ReviewStore
from tests.safety.review.versions import (
    NEXT_REVISION,
    check_that_the_review_goes_on,
    publish_next_version,
    write_first_version,
)


def test_the_migrations_make_the_tables_of_the_code(tmp_path):
    engine = open_database(tmp_path / "review.sqlite")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        indices = {one["name"] for table in METADATA.tables for one in inspect(connection).get_indexes(table)}
    assert indices == {index.name for table in METADATA.tables.values() for index in table.indexes}
    engine.dispose()


def test_a_database_of_the_first_version_opens_with_its_judgements(tmp_path):
    path = tmp_path / "review.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    write_first_version(engine)
    engine.dispose()
    store = ReviewStore(open_database(path))
    check_that_the_review_goes_on(store)
    store.engine.dispose()


def test_the_next_version_opens_a_database_of_this_one_but_not_the_other_way_round(tmp_path, monkeypatch):
    path = tmp_path / "review.sqlite"
    engine = open_database(path)
    write_first_version(engine)
    engine.dispose()
    with monkeypatch.context() as next_version:
        publish_next_version(tmp_path / "versions", next_version)
        store = ReviewStore(open_database(path))
        with store.engine.connect() as connection:
            left = connection.exec_driver_sql("SELECT name, left_at FROM reviewer").all()
        check_that_the_review_goes_on(store)
        store.engine.dispose()
    assert left == [("ann", 2.0)]
    with pytest.raises(InputError, match=rf"of a newer burnish \(revision {NEXT_REVISION}\)") as error:
        open_database(path)
    assert "\n" not in str(error.value)


def test_another_programs_database_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "other.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE item (id INTEGER)")
    engine.dispose()
    with pytest.raises(InputError, match="not a review database"):
        open_database(path)
    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == ["item"]
    engine.dispose()


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "review.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(BurnishError, match="cannot be opened: file is not a database"):
        open_database(path)


def test_a_folder_that_does_not_exist_is_reported(tmp_path):
    with pytest.raises(BurnishError, match="cannot be created"):
        open_database(tmp_path / "nowhere" / "review.sqlite")


@pytest.mark.parametrize("url", ["mysql://u:secret@h/x", "::secret", "secret", "sqlite:///x"])
def test_other_urls_are_refused_without_their_password(url):
    with pytest.raises(InputError, match="postgresql://USER@HOST/NAME") as error:
        open_database(url)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_is_reported_without_the_password():
    with pytest.raises(BurnishError, match="cannot be opened") as error:
        open_database("postgresql://ann:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_the_file_is_private_and_survives_a_power_cut(tmp_path):
    path = tmp_path / "review.sqlite"
    engine = open_database(path)
    with engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
        connection.execute(update(ITEMS).values(open=True))
        modes = {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    engine.dispose()
    assert pragmas == ["wal", 2]  # 2 is FULL
    assert modes == {0o600}
