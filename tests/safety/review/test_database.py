from __future__ import annotations

import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, inspect, update

from burnish.errors import BurnishError, InputError
from burnish.safety.review.database import (
    ITEMS,
    JUDGEMENTS,
    METADATA,
    REVIEWERS,
    migration_config,
    open_database,
)
from burnish.safety.review.store import FIRST, Answer, ReviewStore, token_hash
from tests.safety.review.conftest import pair, visitor

FIRST_REVISION = "0001"


def test_the_migrations_make_the_tables_of_the_code(tmp_path):
    engine = open_database(tmp_path / "review.sqlite")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        indices = {one["name"] for table in METADATA.tables for one in inspect(connection).get_indexes(table)}
    assert indices == {index.name for table in METADATA.tables.values() for index in table.indexes}
    engine.dispose()


def write_first_version(path: Path) -> None:
    """Make a database of the first revision, with an item that ann judged."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), FIRST_REVISION)
        connection.execute(insert(REVIEWERS).values(id=1, name="ann", token_hash=token_hash("secret"), created_at=1.0))
        item = pair(1)
        values = {"key": item.key, "kind": item.kind, "reason": item.reason, "content": item.content, "wanted": 2}
        connection.execute(insert(ITEMS).values(id=1, position=1, judged=1, open=True, **values))
        values = {"holder": "x", "label": FIRST, "shown_first": 0, "ratings": "[null, 4]", "tags": "[]"}
        connection.execute(insert(JUDGEMENTS).values(item_id=1, reviewer_id=1, created_at=2.0, **values))
    engine.dispose()


def test_a_database_of_the_first_version_opens_with_its_judgements(tmp_path):
    write_first_version(tmp_path / "review.sqlite")
    store = ReviewStore(open_database(tmp_path / "review.sqlite"))
    assert store.visitor("secret", "").name == "ann"
    bob = visitor(store, "bob")
    store.judge(bob, store.next_item(bob).id, Answer(FIRST))
    assert [(one.reviewer, one.answer) for one in store.judgements()] == [
        ("ann", Answer(FIRST, (None, 4))), ("bob", Answer(FIRST)),
    ]  # fmt: skip
    store.engine.dispose()


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    engine = open_database(tmp_path / "review.sqlite")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(InputError, match=r"newer burnish \(revision 9999\)"):
        open_database(tmp_path / "review.sqlite")


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
