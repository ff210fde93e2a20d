"""Erasing a person from the registry: the record of it, objects that give way to others, rows that lose his name.

No digest that a version names is changed, so the chain of versions holds. An object that held the person leaves a
tombstone, and `erased_objects` says so: `verify` accepts a missing object only if both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Column, ColumnElement, Connection, Engine, Table, bindparam, delete, insert, select, update

from incremental_llm.errors import PendingErasureError, PreconditionFailed
from incremental_llm.feedback.erasure import compact_sqlite
from incremental_llm.feedback.pseudonyms import Renames
from incremental_llm.feedback.sequence import chunks
from incremental_llm.registry import schema
from incremental_llm.registry.attempts import Attempt
from incremental_llm.registry.examples import places_in, write_examples
from incremental_llm.registry.lineage import SAW
from incremental_llm.registry.objects import Failpoint, ObjectStore, Tombstone
from incremental_llm.registry.queries import read_snapshot
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.transaction import join

SAME_COMMAND = "illm feedback erase --user NAME --yes, with the name and each --also that it was begun with"
"""How an erasure goes on. Its record knows the name as a keyed hash only."""


class Erasure(BaseModel):
    """The record of an erasure; it holds nothing that the person said, and his name as a keyed hash only.

    `increments` are the versions whose own training read him, `versions` all whose stack holds an adapter that was
    trained on him, `adapters` these adapters. `rebuilt` is the version that took their place in production.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    person: str
    status: Literal["pending", "erased", "rebuilt"] = "pending"
    begun: AwareDatetime
    finished: AwareDatetime | None = None
    events: int = 0
    increments: tuple[int, ...] = ()
    versions: tuple[int, ...] = ()
    adapters: tuple[str, ...] = ()
    rebuilt: int | None = None


@dataclass(frozen=True)
class Seen:
    """Where the registry has met events: `had` are versions and `attempts` attempts that read them, used or not.

    `trained` are the versions among them that were trained on one, and `adapters` what these and attempts gave.
    """

    had: frozenset[int]
    trained: frozenset[int]
    attempts: frozenset[str]
    adapters: frozenset[str]


class Erasing:
    """The steps of an erasure in a registry; each may be done again after a kill, and then does what is left of it."""

    def __init__(self, engine: Engine, objects: ObjectStore, failpoint: Failpoint) -> None:
        self._engine = engine
        self.objects = objects
        self._failpoint = failpoint

    def seen(self, events: Collection[str], person: str, renames: Renames) -> Seen:
        """Where these events, or anything else of the person, were read, under their names or their pseudonyms."""
        table = schema.event_uses.c
        names = [form for event in events for form in (event, renames.pseudonyms.of(event))]
        his = table.user.in_((person, renames.pseudonyms.of(person)))
        with schema.reading(self._engine) as connection:
            rows = set(self._rows(connection, his))
            for some in chunks(names):
                rows |= set(self._rows(connection, table.event.in_(some)))
        saw = [row for row in rows if row[3] in SAW]
        return Seen(
            had=frozenset(version for version, *_ in rows if version is not None),
            trained=frozenset(version for version, *_ in saw if version is not None),
            attempts=frozenset(attempt for _, attempt, *_ in rows if attempt is not None),
            adapters=frozenset(adapter for _, _, adapter, _ in saw if adapter is not None),
        )

    def _rows(
        self, connection: Connection, condition: ColumnElement[bool]
    ) -> Iterable[tuple[int | None, str | None, str | None, str]]:
        table = schema.event_uses.c
        query = select(table.version, table.attempt, table.adapter, table.outcome).where(condition).distinct()
        return [(row.version, row.attempt, row.adapter, row.outcome) for row in connection.execute(query)]

    def record(self, erasure: Erasure) -> None:
        """Write the record, or what it has become."""
        with self._writing() as connection:
            table = schema.erasures
            known = connection.execute(select(table.c.number).where(table.c.id == erasure.id)).first()
            body = erasure.model_dump_json()
            if known is None:
                connection.execute(insert(table).values(id=erasure.id, body=body))
            else:
                connection.execute(update(table).where(table.c.id == erasure.id).values(body=body))
        self._failpoint(f"recorded {erasure.status}")

    def replace(self, digest: str, successor: str | None, erasure: str) -> None:
        """Put another object, or nothing, in the place of an object: first said in the database, then done."""
        with self._writing() as connection:
            table = schema.erased_objects
            connection.execute(delete(table).where(table.c.digest == digest))
            connection.execute(insert(table).values(digest=digest, successor=successor, erasure=erasure))
        self._failpoint("replacement recorded")
        self.objects.entomb(digest, Tombstone(erasure, successor))

    def go_on(self) -> None:
        """End the replacements on record that a kill has cut short: what they replace still lies here."""
        with schema.reading(self._engine) as connection:
            recorded = erased_objects(connection)
        for digest, stone in recorded.items():
            if self.objects.lies(digest):
                self.objects.entomb(digest, stone)

    def rename(self, person: str, events: Collection[str], renames: Renames) -> None:
        """Pseudonyms in every row that names the person or one of his events, and examples as their datasets are now.

        In reasons of operators and gates names are found as far as they are no other word (`Renames.text`). A version's
        note is under its hash, and stays.
        """
        uses = schema.event_uses
        with self._writing() as connection:
            connection.execute(update(uses).where(uses.c.user == person).values(user=renames.pseudonyms.of(person)))
            _rename(connection, uses, uses.c.event, events, renames)
            for table, column in (
                (schema.quarantine, "reason"),
                (schema.ref_moves, "reason"),
                (schema.tags, "reason"),
            ):
                _reword(connection, table, table.c[column], renames.text)
            _reword(connection, schema.attempts, schema.attempts.c.body, _attempt_without(renames))
            sources = schema.example_sources
            told = {
                version
                for names in chunks(events)
                for version in connection.scalars(select(sources.c.version).where(sources.c.event.in_(names)))
            }
            for version in sorted(told):
                snapshot = read_snapshot(connection, version)
                if snapshot is not None and snapshot.dataset is not None:
                    write_examples(connection, version, tuple(places_in(self.objects.path(snapshot.dataset))))
        self._failpoint("rows renamed")

    def compact(self) -> None:
        """Leave no byte of what was deleted in SQLite's file or its log.

        Raises:
            IncrementalError: another program is reading the registry.
        """
        if self._engine.dialect.name == "sqlite":
            compact_sqlite(self._engine.connect())
        self._failpoint("registry compacted")

    def _writing(self) -> _Writing:
        return _Writing(self._engine)


class _Writing:
    """One transaction under the registry's write lock."""

    def __init__(self, engine: Engine) -> None:
        self._connection = schema.writing(engine)

    def __enter__(self) -> Connection:
        self._root = self._connection.begin()
        join(self._connection)
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._root.rollback() if kind else self._root.commit()
        finally:
            self._connection.close()


def read_erasures(connection: Connection) -> tuple[Erasure, ...]:
    """Every erasure, oldest first."""
    query = select(schema.erasures.c.body).order_by(schema.erasures.c.number)
    return tuple(Erasure.model_validate_json(body) for body in connection.scalars(query))


def erased_objects(connection: Connection) -> dict[str, Tombstone]:
    """Digest -> what an erased object should have left."""
    rows = connection.execute(select(schema.erased_objects))
    return {row.digest: Tombstone(row.erasure, row.successor) for row in rows}


def erased_parts(
    snapshots: Iterable[Snapshot], stones: Mapping[str, Tombstone], erasures: Iterable[Erasure]
) -> dict[int, str]:
    """Version -> why it can be restored no more, in words; those that nobody's erasure has touched are absent."""
    found: dict[int, str] = {}
    listed = list(erasures)
    for snapshot in snapshots:
        parts = ("replay", "corrections", "dataset", "report", "decision", "recipe")
        gone = [part for part in parts if getattr(snapshot, part) in stones]
        gone += ["adapters"] if not stones.keys().isdisjoint(snapshot.stack.adapters) else []
        held = [one.id for one in listed if not set(one.adapters).isdisjoint(snapshot.stack.adapters)]
        said = [f"erased parts ({', '.join(gone)})"] if gone else []
        said += [f"trained on what erasure {', '.join(held)} has erased"] if held else []
        if said:
            end = "cannot be restored" if held else "goes on with what is left of them"
            found[snapshot.version] = f"{' and '.join(said)}: {end}"
    return found


def refuse_pending(erasures: Iterable[Erasure]) -> None:
    """Raises PendingErasureError while an erasure has not ended: what it has not reached yet still holds the person."""
    pending = [one for one in erasures if one.status == "pending"]
    if pending:
        raise PendingErasureError(
            f"expected every erasure to have ended, found {pending[0].id}, begun {pending[0].begun:%Y-%m-%d %H:%M}: "
            "what holds the person is not to be read or moved to meanwhile. Nothing was changed. Give the command that "
            f"began it again: {SAME_COMMAND}"
        )


def refuse_erased(connection: Connection, target: Snapshot) -> None:
    """Raises PreconditionFailed where a version's stack was trained on somebody who has been erased since."""
    for erasure in read_erasures(connection):
        if not set(erasure.adapters).isdisjoint(target.stack.adapters):
            raise PreconditionFailed(
                f"expected a version whose adapters have seen nobody who was erased, found version {target.version}, "
                f"which erasure {erasure.id} concerns. Nothing was changed: move to a version before "
                f"{min(erasure.versions)}, or train the later ones again without him: illm rebuild"
            )


def _rename(
    connection: Connection, table: Table, column: Column[str], names: Collection[str], renames: Renames
) -> None:
    rows = [{"was": name, "is": renames.pseudonyms.of(name)} for name in names]
    if rows:
        query = update(table).where(column == bindparam("was")).values({column: bindparam("is")})
        connection.execute(query, rows)


def _attempt_without(renames: Renames) -> Callable[[str], str]:
    def reword(body: str) -> str:
        attempt = Attempt.model_validate_json(body)
        said = renames.text(attempt.reason)
        return body if said == attempt.reason else attempt.model_copy(update={"reason": said}).model_dump_json()

    return reword


def _reword(connection: Connection, table: Table, column: Column[str], reword: Callable[[str], str]) -> None:
    for text in connection.scalars(select(column).distinct()).all():
        if (said := reword(text)) != text:
            connection.execute(update(table).where(column == text).values({column: said}))
