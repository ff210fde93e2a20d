"""One commit: collect updates and preconditions under the write lock, check them, write them, all or nothing.

    with transaction(engine, objects) as tx:
        tx.require(RefIs(name="production", version=3))
        tx.add(MoveRef(name="production", version=4))

The one design fact: an error before COMMIT means that nothing changed (`CommitError`); an error in COMMIT itself means
that nobody knows (`CommitStateUnknown`): only the first may be retried without looking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, RootTransaction, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from incremental_llm.errors import CommitError, CommitStateUnknown, IncrementalError, IntegrityError
from incremental_llm.registry import schema
from incremental_llm.registry.attempts import Attempt
from incremental_llm.registry.examples import insert_many, write_examples
from incremental_llm.registry.objects import Failpoint, ObjectStore, no_failpoint
from incremental_llm.registry.queries import read_refs, read_snapshot, read_tags
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.summaries import write_summary
from incremental_llm.registry.updates import (
    AddSnapshot,
    AddTag,
    MoveRef,
    Precondition,
    QuarantineEvents,
    RecordAttempt,
    RecordSuite,
    RecordUses,
    RemoveTag,
    RepeatMove,
    State,
    Update,
    check,
)


class Transaction:
    """A commit in the making. Reads see the committed state; nobody else can write until it ends."""

    def __init__(self, connection: Connection, objects: ObjectStore, failpoint: Failpoint) -> None:
        self.connection = connection
        self.time = datetime.now(UTC)
        self._objects = objects
        self._failpoint = failpoint
        self._preconditions: list[Precondition] = []
        self._updates: list[Update] = []
        self.last = read_snapshot(connection, None)

    def require(self, *preconditions: Precondition) -> None:
        """Refuse the commit unless these hold."""
        self._preconditions += preconditions

    def add(self, *updates: Update) -> None:
        """Do these, in this order, when the commit goes through."""
        self._updates += updates

    def write(self) -> None:
        """Check everything, then write every row; COMMIT is still to come."""
        state = load_state(self.connection, self._objects, self._updates)
        check(self._updates, self._preconditions, state)
        for number, record in enumerate(self._updates):
            self._failpoint(f"before write {number}")
            _write(self.connection, record, state, self.time.isoformat())
        self._failpoint("before commit")


def join(connection: Connection) -> None:
    """Take the write lock of a registry that exists."""
    found = schema.lock(connection)
    if found != schema.FORMAT:
        raise CommitError(f"expected a registry of format {schema.FORMAT}, found {found}: use the package that made it")


@contextlib.contextmanager
def locked(engine: Engine) -> Iterator[Connection]:
    """The write lock for the block, in which no commit can happen; nothing is written.

    Raises:
        IncrementalError: the lock could not be taken.
    """
    try:
        with schema.writing(engine) as connection, connection.begin():
            join(connection)
            yield connection
    except DBAPIError as error:
        raise IncrementalError(
            f"{engine.url.render_as_string()}: could not lock the registry ({error.orig}). Try again."
        ) from error


@contextlib.contextmanager
def transaction(
    engine: Engine,
    objects: ObjectStore,
    failpoint: Failpoint = no_failpoint,
    begin: Callable[[Connection], None] = join,
) -> Iterator[Transaction]:
    """Hold the write lock for the block, and commit what it added.

    `begin` runs first in the transaction; it takes the lock or makes the tables.

    Raises:
        PreconditionFailed: something the commit requires does not hold; nothing was changed.
        CommitError: anything else failed before COMMIT; nothing was changed.
        CommitStateUnknown: COMMIT itself failed.
    """
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(schema.writing(engine))
            root = connection.begin()
            begin(connection)
            failpoint("begun")
            current = Transaction(connection, objects, failpoint)
            yield current
            current.write()
        except IncrementalError:
            raise
        except Exception as error:
            raise CommitError(f"nothing was changed: {type(error).__name__}: {error}") from error
        commit(root, failpoint)


def commit(root: RootTransaction, failpoint: Failpoint) -> None:
    """COMMIT; any error in it leaves the outcome unknown."""
    try:
        failpoint("committing")
        root.commit()
        failpoint("committed")
    except Exception as error:
        raise CommitStateUnknown(
            f"the database failed while committing ({type(error).__name__}: {error}): the commit may or may not have "
            "happened. Look at the head, or ask for the attempt, before you run it again."
        ) from error


def load_state(connection: Connection, objects: ObjectStore, updates: list[Update]) -> State:
    """The committed state as far as the updates need it."""
    last = read_snapshot(connection, None)
    versions = {0, *(u.version for u in updates if isinstance(u, MoveRef | RepeatMove))}
    snapshots = {v: found for v in versions if (found := read_snapshot(connection, v)) is not None}
    drafts = [*snapshots.values(), *(u.snapshot for u in updates if isinstance(u, AddSnapshot))]
    made = [u.attempt for u in updates if isinstance(u, RecordAttempt)]
    keys = {a.id for a in made} | {s.attempt for s in drafts if s.attempt is not None}
    records: list[Snapshot | Attempt] = [*drafts, *made]
    needed = {digest for record in records for digest in record.objects}
    return State(
        last=last,
        refs=read_refs(connection),
        tags=read_tags(connection),
        snapshots=snapshots,
        attempts=frozenset(connection.scalars(select(schema.attempts.c.id).where(schema.attempts.c.id.in_(keys)))),
        committed=_committed(connection, keys),
        quarantined=_already_quarantined(connection, updates),
        suites=_known_suites(connection, updates),
        decisions=_decisions(objects, {r.decision for r in records if r.decision is not None}),
        objects=frozenset(digest for digest in needed if digest in objects),
    )


def _committed(connection: Connection, keys: set[str]) -> dict[str, int]:
    table = schema.snapshots
    rows = connection.execute(select(table.c.attempt, table.c.version).where(table.c.attempt.in_(keys)))
    return {row.attempt: row.version for row in rows}


def _already_quarantined(connection: Connection, updates: list[Update]) -> frozenset[int]:
    seqs = [seq for u in updates if isinstance(u, QuarantineEvents) for seq in u.seqs]
    if not seqs:
        return frozenset()
    column = schema.quarantine.c.seq
    return frozenset(connection.scalars(select(column).where(column.between(min(seqs), max(seqs)))))


def _known_suites(connection: Connection, updates: list[Update]) -> dict[tuple[str, int], str]:
    names = {u.name for u in updates if isinstance(u, RecordSuite)}
    rows = connection.execute(select(schema.suites).where(schema.suites.c.name.in_(names)))
    return {(row.name, row.version): row.digest for row in rows}


def _decisions(objects: ObjectStore, digests: set[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for digest in digests:
        with contextlib.suppress(IntegrityError):  # an unreadable decision is an absent one, and absent never passes
            found[digest] = objects.get_json(digest)
    return found


def _write(connection: Connection, record: Update, before: State, time: str) -> None:
    match record:
        case AddSnapshot(snapshot=snapshot):
            row = {"version": snapshot.version, "hash": snapshot.hash, "attempt": snapshot.attempt}
            connection.execute(insert(schema.snapshots).values(**row, body=snapshot.body))
            write_summary(connection, snapshot)
        case MoveRef():
            _move_ref(connection, record, before, time)
        case RepeatMove(name=name, version=version, before=earlier):
            table = schema.refs
            connection.execute(delete(table).where(table.c.name == name))
            connection.execute(insert(table).values(name=name, version=version))
            log = {"name": name, "before": earlier, "after": version, "reason": record.reason}
            connection.execute(insert(schema.ref_moves).values(**log, time=record.time.isoformat()))
        case AddTag():
            connection.execute(insert(schema.tags).values(**record.model_dump(), time=time))
        case RemoveTag(name=name):
            table = schema.tags
            in_force = (table.c.name == name) & table.c.removed.is_(None)
            connection.execute(update(table).where(in_force).values(removed=time))
        case RecordAttempt(attempt=attempt) if attempt.id not in before.attempts:
            row = {"id": attempt.id, "first_seq": attempt.first_seq, "last_seq": attempt.last_seq}
            connection.execute(insert(schema.attempts).values(**row, body=attempt.model_dump_json()))
        case QuarantineEvents(seqs=seqs):
            shared = {"reason": record.reason, "attempt": record.attempt, "version": record.version, "time": time}
            new = sorted(set(seqs) - before.quarantined)
            insert_many(connection, schema.quarantine, [{"seq": seq, **shared} for seq in new])
        case RecordSuite(name=name, version=version) if (name, version) not in before.suites:
            connection.execute(insert(schema.suites).values(**record.model_dump(), time=time))
        case RecordUses():
            insert_many(connection, schema.event_uses, _use_rows(record))
            if record.version is not None:
                write_examples(connection, record.version, record.examples)
        case _:  # a known attempt or suite: recorded already
            pass


def _move_ref(connection: Connection, move: MoveRef, before: State, time: str) -> None:
    table = schema.refs
    if move.name in before.refs:
        connection.execute(update(table).where(table.c.name == move.name).values(version=move.version))
    else:
        connection.execute(insert(table).values(name=move.name, version=move.version))
    log = {"name": move.name, "before": before.refs.get(move.name), "after": move.version, "reason": move.reason}
    connection.execute(insert(schema.ref_moves).values(**log, time=time))


def _use_rows(record: RecordUses) -> list[dict[str, object]]:
    """A row for each user of an event; an event of no user has one row without."""
    shared = {"version": record.version, "attempt": record.attempt, "adapter": record.adapter}
    return [
        {**shared, "event": use.event, "seq": use.seq, "outcome": use.outcome, "user": user}
        for use in record.uses
        for user in (use.users or (None,))
    ]
