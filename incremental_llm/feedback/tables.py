"""The tables of the feedback store and the connection settings they rely on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import sqlalchemy as sa
from sqlalchemy.pool import NullPool, StaticPool

from incremental_llm.artifacts import switch_to_wal
from incremental_llm.errors import InputError

SCHEMA_VERSION = 2
"""1 had no `links`; `upgrade` makes them."""
_UPGRADE_ROWS = 2000
_LONGEST_ID = 200
_BUSY_SECONDS = 60
_CACHE_KIB = 65536  # SQLite's own 2 MB: the index of ids, of no order, would be read from the file again and again

metadata = sa.MetaData()
events = sa.Table(
    "feedback_events",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("seq", sa.BigInteger, unique=True, nullable=True),
    sa.Column("arrival", sa.BigInteger, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
waits = sa.Table(
    "feedback_waits",
    metadata,
    sa.Column("event_id", sa.String, primary_key=True),
    sa.Column("interaction_id", sa.String, primary_key=True, index=True),
)
links = sa.Table(
    "feedback_links",
    metadata,
    sa.Column("kind", sa.String(8), primary_key=True),  # person: who speaks in the event; event: which it names
    sa.Column("target", sa.String, primary_key=True),
    sa.Column("event_id", sa.String, primary_key=True),
)
counters = sa.Table(
    "feedback_counters",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
arrivals = sa.Table(
    "feedback_arrivals",
    metadata,
    sa.Column("after_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time_ms", sa.BigInteger, nullable=False, index=True),  # since 1970, UTC, by the store's clock
)
parked_messages = sa.Table(
    "feedback_parked_messages",
    metadata,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset_number", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),  # a topic made anew has other messages in the same places
    sa.Column("time_ms", sa.BigInteger, nullable=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message_key", sa.LargeBinary, nullable=True),
    sa.Column("value", sa.LargeBinary, nullable=True),
    sa.Column("size", sa.BigInteger, nullable=False),
)
stream_positions = sa.Table(
    "feedback_stream_positions",
    metadata,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("consumer_group", sa.String, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)
marks = sa.Table(
    "feedback_import_marks",
    metadata,
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, nullable=False),
    sa.Column("lines", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
)
erasure_keys = sa.Table(
    "feedback_erasure_keys",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(64), nullable=False),  # 32 bytes in hex: what erased names are hashed with
)
erased_people = sa.Table(
    "feedback_erased_people",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),  # a pseudonym
)
refused_lines = sa.Table(
    "feedback_refused_lines",
    metadata,
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("line", sa.BigInteger, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
)


def open_engine(url: str) -> sa.Engine:
    """An engine for `url`; SQLite files get WAL, synchronous=FULL and a connection of their own for every use.

    Raises:
        InputError: a URL that SQLAlchemy cannot read, a missing driver, or a folder that does not exist.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise InputError(
            f"feedback store: expected a database URL such as sqlite:////absolute/path/feedback.db, found {url!r} "
            f"({error}). For PostgreSQL install the extra: pip install 'incremental_llm[postgres]'."
        ) from error
    if parsed.database in (None, "", ":memory:"):
        return sa.create_engine(parsed, poolclass=StaticPool)
    folder = Path(parsed.database).parent
    if not folder.is_dir():
        raise InputError(
            f"feedback store: expected a folder {folder}, found none. Create it, or start with: illm init."
        )
    # A pool would keep files open after the last use, in whatever thread that was.
    engine = sa.create_engine(parsed, poolclass=NullPool, connect_args={"timeout": _BUSY_SECONDS})
    sa.event.listen(engine, "connect", _durable)
    return engine


def _durable(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    try:
        switch_to_wal(cursor, _BUSY_SECONDS)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    finally:
        cursor.close()


def create_tables(engine: sa.Engine) -> None:
    """Create what is missing; several processes may do so at once."""
    with engine.begin() as connection:
        create_missing(connection, metadata)
    for name, value in (("schema", SCHEMA_VERSION), ("seq", 0), ("arrival", 0)):
        try:
            with engine.begin() as connection:
                if connection.execute(sa.select(counters.c.name).where(counters.c.name == name)).first() is None:
                    connection.execute(sa.insert(counters).values(name=name, value=value))
        except sa.exc.IntegrityError:
            continue  # another process was faster


def create_missing(connection: sa.Connection, wanted: sa.MetaData) -> None:
    """Create those tables and indexes that are not there."""
    for table in wanted.sorted_tables:
        connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))


_LAST_NUMBERS = sa.select(counters).where(counters.c.name.in_(("seq", "arrival")))


def last_numbers(connection: sa.Connection) -> tuple[int, int]:
    """The last place in the sequence and in the order of arrival that was given out."""
    last = {row.name: int(row.value) for row in connection.execute(_LAST_NUMBERS)}
    return last["seq"], last["arrival"]


def counter(connection: sa.Connection, name: str) -> int:
    """The value of a counter: `seq` and `arrival` are the last numbers given out, `schema` the version."""
    return int(connection.execute(sa.select(counters.c.value).where(counters.c.name == name)).scalar_one())


Link = tuple[str, str]
"""Kind (person or event) and target of a row of `links`."""


def links_of(body: Mapping[str, Any], *, every: bool = False) -> tuple[Link, ...]:
    """Whom and what an event names, by its JSON; what could be no id is no target, unless `every` text is one."""
    people = [body.get(key) for key in ("user", "reviewer")]
    named = [body.get(key) for key in ("interaction", "chosen", "rejected", "followup")]
    for key in ("supersedes", "replies"):
        if isinstance(body.get(key), list):
            named += body[key]
    counts = _is_text if every else is_id
    found = [("person", target) for target in dict.fromkeys(filter(counts, people))]
    return (*found, *(("event", target) for target in dict.fromkeys(filter(counts, named))))


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def is_id(value: Any) -> TypeGuard[str]:
    """Whether a value can be the target of a link."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and value.isprintable()


def insert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each with its values in the order of the columns.

    The driver takes them as they are: `Connection.execute` would look at every value of every row again, which costs
    more than SQLite's own work.
    """
    if not rows:
        return
    statement, by_position = _insert_statement(table, connection.dialect)
    names = table.columns.keys()
    given = list(rows) if by_position else [dict(zip(names, row, strict=True)) for row in rows]
    connection.exec_driver_sql(statement, given)


@lru_cache
def _insert_statement(table: sa.Table, dialect: sa.Dialect) -> tuple[str, bool]:
    compiled = sa.insert(table).compile(dialect=dialect)
    return str(compiled), bool(dialect.positional)


def upgrade(connection: sa.Connection) -> None:
    """Bring a store of schema 1 to this one, within the caller's transaction."""
    last = ""
    while True:
        wanted = sa.select(events.c.id, events.c.body).where(events.c.id > last).order_by(events.c.id)
        rows = connection.execute(wanted.limit(_UPGRADE_ROWS)).all()
        if not rows:
            break
        insert(connection, links, [(*link, row.id) for row in rows for link in links_of(json.loads(row.body))])
        last = rows[-1].id
    connection.execute(sa.update(counters).values(value=SCHEMA_VERSION).where(counters.c.name == "schema"))
