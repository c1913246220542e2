"""The review database: tables, connections to SQLite or PostgreSQL, and migrations."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from burnish.errors import BurnishError, InputError
from burnish.system.optional_packages import needed

BUSY_SECONDS = 30
"""How long a connection to SQLite waits for another one's transaction."""

METADATA = MetaData()
SETTINGS = Table(
    "setting", METADATA, Column("name", String(40), primary_key=True), Column("value", Text, nullable=False)
)
REVIEWERS = Table(
    "reviewer", METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String(80), nullable=False, unique=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
)  # fmt: skip
ITEMS = Table(
    "item", METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),
    Column("kind", String(10), nullable=False),
    Column("reason", String(20), nullable=False),
    Column("content", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("judged", Integer, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("leased_by", String(64)),
    Column("leased_until", Float),
    Index("item_queue", "open", "position"),
    Index("item_lease", "leased_by"),
    Index("item_kind", "kind", "open"),
)  # fmt: skip
JUDGEMENTS = Table(
    "judgement", METADATA,
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("item.id"), nullable=False),
    Column("reviewer_id", Integer, ForeignKey("reviewer.id"), nullable=False),
    Column("holder", String(64), nullable=False),
    Column("label", String(10), nullable=False),
    Column("shown_first", Integer, nullable=False),
    Column("ratings", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("undone_at", Float),
    Index("judgement_of_reviewer", "reviewer_id", "item_id"),
    Index(
        "judgement_once", "item_id", "reviewer_id", unique=True,
        sqlite_where=text("undone_at IS NULL"), postgresql_where=text("undone_at IS NULL"),
    ),
)  # fmt: skip


def open_database(url: str | Path) -> Engine:
    """Return a connection pool of a database at the newest revision; create or upgrade it first.

    Args:
        url: the path of an SQLite file, or ``postgresql://...``.

    Raises:
        InputError: the URL is not of a database that can be used, or it is of a newer version of burnish.
        BurnishError: the database cannot be opened.
    """
    address = _address(url)
    shown = address.render_as_string(hide_password=True) if address.host or not address.database else address.database
    if address.drivername.startswith("sqlite"):
        if Path(address.database or "").is_symlink():
            raise InputError(f"{shown} is a link, and a review is never written through one: remove it")
        _create_private(Path(address.database or ""))
    engine = _engine(address)
    try:
        with engine.begin() as connection:
            _upgrade(connection, shown)
    except DatabaseError as error:
        engine.dispose()
        raise BurnishError(f"the review database {shown} cannot be opened: {_first_line(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _address(url: str | Path) -> URL:
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url))
    try:
        address = make_url(url)
    except ArgumentError:
        # The URL is not quoted: it may hold a password.
        raise InputError("--database: not a URL; write postgresql://USER@HOST/NAME") from None
    if address.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise InputError(f"--database: '{address.drivername}' is not supported; write postgresql://USER@HOST/NAME")
    needed("psycopg", "postgres", "a review database on PostgreSQL")
    return address.set(drivername="postgresql+psycopg")


def _create_private(path: Path) -> None:
    """Create the file for its owner only: it holds model text and the hashes of tokens."""
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise BurnishError(f"{path} cannot be created: {error.strerror}") from error


def _engine(address: URL) -> Engine:
    if not address.drivername.startswith("sqlite"):
        return create_engine(address, pool_pre_ping=True)
    engine = create_engine(address, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # A transaction that reads first and writes later would fail where another one has written in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def migration_config(connection: Any) -> Config:
    """Return Alembic's configuration for the migrations of this package over a connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Any, shown: str) -> None:
    config = migration_config(connection)
    if connection.dialect.name == "postgresql":  # two servers that start at once migrate one after the other
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7205759403792793)")
    revision = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config)
    if revision is not None and revision not in {one.revision for one in script.walk_revisions()}:
        raise InputError(
            f"the review database {shown} is of a newer burnish (revision {revision}): upgrade burnish to open it"
        )
    if revision is None and (tables := set(inspect(connection).get_table_names()) & set(METADATA.tables)):
        raise InputError(f"{shown} is not a review database, but has tables of its names: {', '.join(sorted(tables))}")
    if revision != script.get_current_head():
        command.upgrade(config, "head")


def _first_line(error: DatabaseError) -> str:
    return str(error.orig).strip().partition("\n")[0]
