"""The tables, and the engine with the durability that the registry promises. No rules live here."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
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
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from incremental_llm.artifacts import switch_to_wal
from incremental_llm.errors import IncrementalError, InputError, IntegrityError

FORMAT = "3"
"""Version of the tables; 1 had neither examples nor erasures, 2 neither tags nor summaries, and both are brought to
this one when they are opened. A registry of any other format is refused, not guessed at."""
EARLIER = ("1", "2")
_SERVER_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('incremental_llm.registry.' || current_schema(), 0))"
"""Let go when the transaction ends or its connection breaks, so a killed writer blocks nobody."""
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

summaries = Table(  # of each body, what a list shows: ten thousand are read in a moment
    "summaries",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("parent", Integer),
    Column("restores", Integer),
    Column("time", String(40), nullable=False),
    Column("adapters", Integer, nullable=False),
    Column("cursor", Integer, nullable=False),
    Column("note", Text, nullable=False),
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

    Every commit is flushed to the disk before it is acknowledged, and writers queue for the lock when they begin, not
    when they commit: SQLite by its write-ahead log, synchronous=FULL and BEGIN IMMEDIATE, PostgreSQL by
    synchronous_commit and an advisory lock. A reader sees the state of the moment at which it began.

    Raises:
        InputError: not the URL of one of the two, or no driver for it.
    """
    try:
        engine = create_engine(url, poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InputError(
            f"registry: expected a database URL such as postgresql+psycopg://host/name, found one that does not open "
            f"({error}). For PostgreSQL install the extra: pip install 'incremental_llm[postgres]'."
        ) from error
    begins = {"sqlite": _begin_sqlite, "postgresql": _begin_postgresql}
    configures = {"sqlite": _configure_sqlite, "postgresql": _configure_postgresql}
    if engine.dialect.name not in begins:
        raise InputError(f"registry: expected SQLite or PostgreSQL, found {engine.dialect.name}")
    event.listen(engine, "connect", configures[engine.dialect.name])
    event.listen(engine, "begin", begins[engine.dialect.name])
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
    """The format, read as the only writer, which `writing` has made this transaction when it began."""
    return format_of(connection)


def durability(connection: Connection) -> str | None:
    """Why an acknowledged commit may be lost with the settings of this database; None when it may not."""
    if connection.dialect.name == "sqlite":
        found = tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous"))
        expected: tuple[object, ...] = ("wal", 2)
        names = "journal_mode=wal and synchronous=2"
    else:
        found = tuple(connection.exec_driver_sql(f"SHOW {name}").scalar() for name in _SERVER_SETTINGS)
        expected, names = ("on",) * 3, " = on, ".join(_SERVER_SETTINGS) + " = on"
    return None if found == expected else f"expected {names}, found {', '.join(map(str, found))}"


def writing(engine: Engine) -> Connection:
    """A connection whose transactions take the write lock when they begin."""
    return engine.connect().execution_options(registry_write=True)


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one consistent state, whatever is committed meanwhile, also while the disk is full.

    Raises:
        IntegrityError: the database is damaged.
        IncrementalError: the database cannot be reached, or refuses.
    """
    where = engine.url.render_as_string()  # without its password
    try:
        with _connect_to_read(engine) as connection, connection.begin():
            yield connection
    except OperationalError as error:
        raise IncrementalError(f"{where}: could not read the registry ({error.orig})") from error
    except (DatabaseError, UnicodeDecodeError, ValidationError) as error:
        found = error.orig if isinstance(error, DatabaseError) else str(error).partition("\n")[0]
        if engine.dialect.name != "sqlite":
            raise IncrementalError(f"{where}: could not read the registry ({found})") from error
        raise IntegrityError(
            f"{where}: expected a registry database, found a damaged file ({found}). Restore it from a copy."
        ) from error


def _connect_to_read(engine: Engine) -> Connection:
    """A connection; where SQLite has no room for the memory that its processes share, one that does without and is
    alone for as long."""
    try:
        return engine.connect()
    except OperationalError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN):
            raise
    alone = engine_for(engine.url)
    event.listen(
        alone, "connect", lambda connection, _: connection.execute("PRAGMA locking_mode=EXCLUSIVE").close(), insert=True
    )
    return alone.connect()


def _configure_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver would begin lazily, and not at all before a SELECT
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}").close()
    switch_to_wal(connection, BUSY_SECONDS)
    connection.execute("PRAGMA synchronous=FULL").close()


def _configure_postgresql(connection: Any, record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
        cursor.execute(f"SET lock_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    """A writer sees what was committed when it gets the lock, a reader what was committed when it began."""
    if connection.get_execution_options().get("registry_write", False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(_LOCK)
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("registry_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
