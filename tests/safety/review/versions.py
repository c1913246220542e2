"""Databases of the review's first version, and a version after this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert

from burnish.safety.review import database, migrations
from burnish.safety.review.database import ITEMS, JUDGEMENTS, REVIEWERS, migration_config
from burnish.safety.review.store import FIRST, Answer, ReviewStore, token_hash
from tests.safety.review.conftest import pair, visitor

FIRST_REVISION = "0001"
NEXT_REVISION = "9999"
NEXT_MIGRATION = f'''
"""Let a reviewer leave."""

import sqlalchemy as sa
from alembic import op

revision = "{NEXT_REVISION}"
down_revision = "{ScriptDirectory.from_config(migration_config(None)).get_current_head()}"


def upgrade() -> None:
    op.add_column("reviewer", sa.Column("left_at", sa.Float))
    op.execute("UPDATE reviewer SET left_at = created_at + 1")
'''


def write_first_version(engine: Engine) -> None:
    """Make the tables of the first revision, with an item that ann judged."""
    with engine.begin() as connection:
        command.upgrade(migration_config(connection), FIRST_REVISION)
        connection.execute(insert(REVIEWERS).values(id=100, name="ann", token_hash=token_hash("secret"), created_at=1))
        item = pair(1)
        values = {"key": item.key, "kind": item.kind, "reason": item.reason, "content": item.content, "wanted": 2}
        connection.execute(insert(ITEMS).values(id=100, position=1, judged=1, open=True, **values))
        values = {"holder": "x", "label": FIRST, "shown_first": 0, "ratings": "[null, 4]", "tags": "[]"}
        connection.execute(insert(JUDGEMENTS).values(item_id=100, reviewer_id=100, created_at=2, **values))


def publish_next_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this program the version after its own: one with a further migration, which lies in the folder."""
    folder.mkdir()
    (folder / "next_version.py").write_text(NEXT_MIGRATION, encoding="utf-8")
    own = Path(migrations.__file__).parent / "versions"

    def config(connection: Any) -> Config:
        made = migration_config(connection)
        made.set_main_option("path_separator", "newline")
        made.set_main_option("version_locations", f"{own}\n{folder}".replace("%", "%%"))
        return made

    monkeypatch.setattr(database, "migration_config", config)


def check_that_the_review_goes_on(store: ReviewStore) -> None:
    """Assert that ann's token and judgement are those of ``write_first_version``, and that bob can judge her item."""
    ann = store.visitor("secret", "")
    assert ann is not None and ann.name == "ann" and store.next_item(ann) is None
    bob = visitor(store, "bob")
    item = store.next_item(bob)
    assert item is not None and item.prompt == "prompt 1"
    store.judge(bob, item.id, Answer(FIRST))
    assert [(one.reviewer, one.answer) for one in store.judgements()] == [
        ("ann", Answer(FIRST, (None, 4))), ("bob", Answer(FIRST)),
    ]  # fmt: skip
