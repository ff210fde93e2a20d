"""The append-only event store: every event once, in one sequence that a cursor can follow without missing anything.

An event gets its sequence number in the transaction that makes it readable. One that names an interaction which has
not arrived is kept without a number and gets the next one when the interaction is there.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from incremental_llm.errors import InputError, IntegrityError
from incremental_llm.feedback import arrivals, tables
from incremental_llm.feedback.encode import Encoded, encode
from incremental_llm.feedback.events import Event, EventError, load_event
from incremental_llm.feedback.sequence import CHUNK, Appending, Refused, chunks

_TAKE_TURN = sa.update(tables.counters).values(value=tables.counters.c.value).where(tables.counters.c.name == "seq")
_COUNT_WAITING = sa.select(sa.func.count()).select_from(tables.events).where(tables.events.c.seq.is_(None))


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event and its place in the sequence, from 1 on."""

    seq: int
    event: Event


@dataclass(frozen=True, slots=True)
class EventPlace:
    """Where an event is: its place in the sequence, None while it waits for an interaction."""

    id: str
    type: str
    seq: int | None


@dataclass(frozen=True, slots=True)
class AppendReport:
    """What one append did: `added` and `duplicates` count its events; `waiting` counts all that the store holds.

    `repeated` holds the places of the duplicates in what was appended.
    """

    added: int
    duplicates: int
    waiting: int
    refused: tuple[Refused, ...]
    repeated: tuple[int, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ImportMark:
    """How far a source was imported: `digest` is the sha256 of its first `offset` bytes, which hold `lines` lines."""

    source: str
    offset: int
    lines: int
    digest: str


@dataclass(frozen=True, slots=True)
class ImportStep:
    """One batch of an import: the line of each of its events, the lines refused before, and the mark after it."""

    mark: ImportMark
    numbers: tuple[int, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)


class FeedbackStore:
    """Events in a database: `sqlite:////absolute/path.db`, or any URL that SQLAlchemy knows.

    Processes and threads may append at the same time. `sqlite://` lives in memory and in one thread, for trying out.

    Raises:
        InputError: the database cannot be opened, or was made by another version.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = tables.open_engine(url)
        self._kept = threading.local()
        try:
            tables.create_tables(self._engine)
            self._check_schema()
        except sa.exc.DBAPIError as error:
            self.close()
            raise InputError(
                f"feedback store {self._shown()}: expected a database that can be opened, found: {error.orig}. "
                "Check that the folder exists and that the file is a database of this program."
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; the store can be used again afterwards, unless it lives in memory."""
        self._engine.dispose()

    def append(
        self,
        events: Iterable[Event | Encoded],
        *,
        step: ImportStep | None = None,
        also: Callable[[sa.Connection, Sequence[Refused]], None] | None = None,
    ) -> AppendReport:
        """Store events in their order, all in one transaction; an id that is there with equal content is a duplicate.

        `step` (how far an import came, and what it refused) is stored in the same transaction, and so is what `also`
        writes; it is called last, with the events that were refused. If anything raises, `events` included, nothing of
        it is stored.
        """
        with self.writing() as connection:
            report = append_within(connection, events)
            if step is not None:
                _save_step(connection, step, report.refused)
            if also is not None:
                also(connection, report.refused)
            return report

    def head(self) -> int:
        """The last sequence number; 0 when the store is empty."""
        with self._engine.connect() as connection:
            return tables.counter(connection, "seq")

    def last_seq_at(self, time: datetime) -> int:
        """The last sequence number that the store surely had given out at `time`, by its own clock."""
        with self._engine.connect() as connection:
            return arrivals.last_seq_at(connection, time)

    def young_accounts(self, people: Collection[str], until: int, age: timedelta) -> frozenset[str]:
        """Those of `people` whose first event came less than `age` before the event at `until`; see `arrivals`."""
        with self._engine.connect() as connection:
            return arrivals.young_accounts(connection, people, until, age)

    def read(
        self,
        after: int = 0,
        until: int | None = None,
        chunk: int = 1000,
        types: Collection[str] | None = None,
    ) -> Iterator[StoredEvent]:
        """Events with after < seq <= until in order of seq, `chunk` rows in memory at a time.

        `until` defaults to the head at the first step, so a reader ends although writers go on. `types` limits it to
        some types.
        """
        last = self.head() if until is None else until
        columns = (tables.events.c.seq, tables.events.c.type, tables.events.c.body)
        wanted = sa.select(*columns).order_by(tables.events.c.seq).limit(chunk)
        if types is not None:
            wanted = wanted.where(tables.events.c.type.in_(list(types)))
        position = after
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(
                    wanted.where(tables.events.c.seq > position, tables.events.c.seq <= last)
                ).all()
            for seq, kind, body in rows:
                yield StoredEvent(seq, _load(kind, body))
            if len(rows) < chunk:
                return
            position = rows[-1].seq

    def waiting_count(self) -> int:
        """How many events wait for an interaction that has not arrived."""
        with self._engine.connect() as connection:
            return _waiting_count(connection)

    def waiting(self) -> list[Event]:
        """Events that name an interaction which has not arrived, in order of arrival."""
        wanted = sa.select(tables.events.c.type, tables.events.c.body).where(tables.events.c.seq.is_(None))
        with self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(tables.events.c.arrival))
            return [_load(row.type, row.body) for row in rows]

    def get(self, ids: Iterable[str]) -> dict[str, StoredEvent]:
        """The numbered events among `ids`; unknown and waiting ones are absent."""
        found: dict[str, StoredEvent] = {}
        with self._engine.connect() as connection:
            for names in chunks(ids):
                columns = (tables.events.c.id, tables.events.c.seq, tables.events.c.type, tables.events.c.body)
                wanted = sa.select(*columns)
                rows = connection.execute(wanted.where(tables.events.c.id.in_(names), tables.events.c.seq.is_not(None)))
                found |= {row.id: StoredEvent(row.seq, _load(row.type, row.body)) for row in rows}
        return found

    def find(self, name: str) -> tuple[int | None, Event] | None:
        """An event of this id and its place, None while it waits; None where there is no such event."""
        columns = (tables.events.c.seq, tables.events.c.type, tables.events.c.body)
        wanted = sa.select(*columns).where(tables.events.c.id == name)
        with self._engine.connect() as connection:
            row = connection.execute(wanted).first()
        return None if row is None else (row.seq, _load(row.type, row.body))

    def by_person(self, person: str) -> tuple[EventPlace, ...]:
        """Everything that a user or reviewer said or asked, waiting events included, in order of arrival."""
        return self._linked("person", person)

    def about(self, name: str) -> tuple[EventPlace, ...]:
        """Every event that names this one: feedback on an interaction, policy changes, in order of arrival."""
        return self._linked("event", name)

    def _linked(self, kind: str, target: str) -> tuple[EventPlace, ...]:
        columns = (tables.events.c.id, tables.events.c.type, tables.events.c.seq)
        wanted = sa.select(*columns).join(tables.links, tables.links.c.event_id == tables.events.c.id)
        wanted = wanted.where(tables.links.c.kind == kind, tables.links.c.target == target)
        with self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(tables.events.c.arrival))
            return tuple(EventPlace(row.id, row.type, row.seq) for row in rows)

    def counts(self) -> dict[str, int]:
        """How many events of each type the store holds, waiting ones included."""
        wanted = (
            sa.select(tables.events.c.type, sa.func.count())
            .group_by(tables.events.c.type)
            .order_by(tables.events.c.type)
        )
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(wanted)}

    def mark(self, source: str) -> ImportMark | None:
        """How far `source` was imported; None when it never was."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(tables.marks).where(tables.marks.c.source == source)).first()
        return None if row is None else ImportMark(row.source, row.offset_bytes, row.lines, row.digest)

    def refused_lines(self, source: str) -> tuple[tuple[int, str], ...]:
        """(line, reason) of every line of `source` that an import refused."""
        wanted = sa.select(tables.refused_lines.c.line, tables.refused_lines.c.reason).where(
            tables.refused_lines.c.source == source
        )
        with self._engine.connect() as connection:
            return tuple(
                (row.line, row.reason) for row in connection.execute(wanted.order_by(tables.refused_lines.c.line))
            )

    def all_refused_lines(self) -> tuple[tuple[str, int, str], ...]:
        """(source, line, reason) of every line that an import of any source refused."""
        columns = (tables.refused_lines.c.source, tables.refused_lines.c.line, tables.refused_lines.c.reason)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns).order_by(*columns[:2]))
            return tuple((row.source, row.line, row.reason) for row in rows)

    def reading(self) -> sa.Connection:
        """A connection to read tables by that a way in keeps beside the events; close it."""
        return self._engine.connect()

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Within, all writing of this thread goes over one connection.

        Opened for each transaction anew, it would start with an empty cache, and SQLite moves its whole log into the
        file, and removes it, whenever the last connection closes.
        """
        if getattr(self._kept, "connection", None) is not None:
            yield
            return
        with self._engine.connect() as connection:
            self._kept.connection = connection
            try:
                yield
            finally:
                self._kept.connection = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction, and the only one that writes meanwhile: committed at the end, undone if anything raises."""
        with self.kept_open():
            connection = self._kept.connection
            with connection.begin():
                # The first statement takes the write lock (the file's in SQLite, the row's in PostgreSQL): whoever
                # holds it sees all that was committed and alone hands out the next numbers.
                connection.execute(_TAKE_TURN)
                yield connection

    def _check_schema(self) -> None:
        with self._engine.connect() as connection:
            found = tables.counter(connection, "schema")
        if found < tables.SCHEMA_VERSION:
            with self.writing() as connection:
                if tables.counter(connection, "schema") < tables.SCHEMA_VERSION:  # no other process was faster
                    tables.upgrade(connection)
                found = tables.SCHEMA_VERSION
        if found != tables.SCHEMA_VERSION:
            raise InputError(
                f"feedback store {self._shown()}: expected schema {tables.SCHEMA_VERSION}, found {found}. "
                "It was made by another version of this program: use that one, or import the logs into a new store."
            )

    def _shown(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)


def append_within(connection: sa.Connection, events: Iterable[Event | Encoded]) -> AppendReport:
    """`FeedbackStore.append` for a caller that stores more in the same transaction, one of `FeedbackStore.writing`."""
    batch = Appending(connection)
    before = batch.seq
    stream = (event if isinstance(event, Encoded) else encode(event) for event in events)
    while chunk := list(itertools.islice(stream, CHUNK)):
        batch.add(chunk)
    batch.finish()
    if batch.seq > before:
        arrivals.note(connection, before)
    return AppendReport(
        added=batch.added,
        duplicates=len(batch.repeated),
        waiting=_waiting_count(connection),
        refused=tuple(batch.refused),
        repeated=tuple(batch.repeated),
    )


def _waiting_count(connection: sa.Connection) -> int:
    return int(connection.execute(_COUNT_WAITING).scalar_one())


def _save_step(connection: sa.Connection, step: ImportStep, refused: Iterable[Refused]) -> None:
    """Replace the mark of a source; one that starts again from its first byte forgets the lines refused before."""
    mark = step.mark
    connection.execute(sa.delete(tables.marks).where(tables.marks.c.source == mark.source))
    row = {"source": mark.source, "offset_bytes": mark.offset, "lines": mark.lines, "digest": mark.digest}
    connection.execute(sa.insert(tables.marks), [row])
    if mark.offset == 0:
        connection.execute(sa.delete(tables.refused_lines).where(tables.refused_lines.c.source == mark.source))
    reasons = {**step.refused, **{step.numbers[one.position]: one.reason for one in refused}}
    if reasons:
        # Another import of the same file may have come here first.
        known = tables.refused_lines.c.source == mark.source
        connection.execute(sa.delete(tables.refused_lines).where(known, tables.refused_lines.c.line.in_(list(reasons))))
        rows = [{"source": mark.source, "line": line, "reason": reason} for line, reason in reasons.items()]
        connection.execute(sa.insert(tables.refused_lines), rows)


def _load(kind: str, body: str) -> Event:
    try:
        return load_event(kind, body)
    except (ValueError, EventError) as error:
        raise IntegrityError(
            f"feedback store: expected an event that can be read, found {body[:80]!r} ({error}). "
            "The database was changed by other hands or made by a newer version: restore it from a copy."
        ) from error
