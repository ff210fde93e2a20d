"""The tables, and the engine with the durability that the registry promises. No rules live here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from incremental_llm.artifacts import switch_to_wal
from incremental_llm.errors import IncrementalError, IntegrityError

FORMAT = "3"
"""Version of the tables; 1 had neither examples nor erasures, 2 no tags, and both are brought to this one when they are
opened. A registry of any other format is refused, not guessed at."""
EARLIER = ("1", "2")
BUSY_SECONDS = 30.0
"""How long a commit waits for another one to finish."""

metadata = MetaData()

facts = Table("registry", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))

snapshots = Table(
    "snapshots",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("attempt", String(64), unique=True),
    Column("body", Text, nullable=False),
)

refs = Table(
    "refs", metadata, Column("name", String(128), primary_key=True), Column("version", Integer, nullable=False)
)

tags = Table(
    "tags",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", String(40), nullable=False),
    Column("reason", Text, nullable=False),
    Column("removed", String(40)),  # when; its row stays, so that what a name once meant can be looked up
    Index(
        "tags_in_force",
        "name",
        unique=True,
        sqlite_where=text("removed IS NULL"),
        postgresql_where=text("removed IS NULL"),
    ),
)

ref_moves = Table(
    "ref_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(128), nullable=False, index=True),
    Column("before", Integer),
    Column("after", Integer, nullable=False),
    Column("time", String(40), nullable=False),
    Column("reason", Text, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("first_seq", Integer, nullable=False),
    Column("last_seq", Integer, nullable=False, index=True),
    Column("body", Text, nullable=False),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    Column("attempt", String(64)),
    Column("version", Integer),
    Column("time", String(40), nullable=False),
)

suites = Table(
    "suites",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("time", String(40), nullable=False),
)

event_uses = Table(
    "event_uses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, index=True),
    Column("attempt", String(64)),
    Column("adapter", String(64), index=True),
    Column("event", Text, nullable=False),
    Column("seq", Integer),
    Column("user", Text),
    Column("outcome", String(64), nullable=False),
    Index("event_uses_by_user", "user", "outcome"),
    Index("event_uses_by_event", "event"),
)

examples = Table(
    "examples",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("example", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("offset", Integer, nullable=False),  # of its line, in bytes, in the file of its kind in the dataset
    Index("examples_by_id", "example"),
)

example_sources = Table(
    "example_sources",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("example", String(64), primary_key=True),
    Column("event", Text, primary_key=True),
    Index("example_sources_by_event", "event"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("body", Text, nullable=False),
)

erased_objects = Table(
    "erased_objects",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("successor", String(64)),
    Column("erasure", String(32), nullable=False),
)


def engine_for(url: str | URL) -> Engine:
    """An engine that keeps no connection open between uses.

    SQLite: write-ahead log, every commit flushed to the disk (synchronous=FULL), writers queue for the lock when they
    begin, not when they commit.
    """
    engine = create_engine(url, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def exists(connection: Connection) -> bool:
    """Whether the database holds a registry."""
    return bool(inspect(connection).has_table(facts.name))


def create(connection: Connection) -> None:
    """Make the tables."""
    metadata.create_all(connection)
    connection.execute(insert(facts).values(key="format", value=FORMAT))


def format_of(connection: Connection) -> str:
    """The format of a registry that exists."""
    return str(connection.execute(select(facts.c.value).where(facts.c.key == "format")).scalar_one())


def add_tables(connection: Connection) -> None:
    """Make what an earlier format had not, and say that it is this one now."""
    metadata.create_all(connection)
    connection.execute(update(facts).where(facts.c.key == "format").values(value=FORMAT))


def lock(connection: Connection) -> str:
    """Become the only writer until the transaction ends, and return the format.

    SQLite took the lock at BEGIN IMMEDIATE and ignores FOR UPDATE; a server locks the row.
    """
    query = select(facts.c.value).where(facts.c.key == "format").with_for_update()
    return str(connection.execute(query).scalar_one())


def writing(engine: Engine) -> Connection:
    """A connection whose transactions take the write lock when they begin."""
    return engine.connect().execution_options(registry_write=True)


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one consistent state, whatever is committed meanwhile.

    Raises:
        IntegrityError: the database is damaged.
        IncrementalError: the database cannot be reached.
    """
    try:
        with engine.connect() as connection, connection.begin():
            yield connection
    except OperationalError as error:
        raise IncrementalError(f"{engine.url}: could not read the registry ({error.orig})") from error
    except DatabaseError as error:
        raise IntegrityError(
            f"{engine.url}: expected a registry database, found a damaged file ({error.orig}). Restore it from a copy."
        ) from error


def _configure_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver would begin lazily, and not at all before a SELECT
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}").close()
    switch_to_wal(connection, BUSY_SECONDS)
    connection.execute("PRAGMA synchronous=FULL").close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("registry_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
