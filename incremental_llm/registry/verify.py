"""Every promise of the registry, checked on what is there now; each breach is one problem in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pydantic import ValidationError
from sqlalchemy import Connection, select
from sqlalchemy.exc import DatabaseError

from incremental_llm.artifacts import verify_tensors
from incremental_llm.errors import IncrementalError, IntegrityError
from incremental_llm.registry import invariants, schema
from incremental_llm.registry.erasure import erased_objects, read_erasures
from incremental_llm.registry.invariants import Problem
from incremental_llm.registry.objects import ObjectStore, Tombstone
from incremental_llm.registry.queries import read_attempts
from incremental_llm.registry.references import references
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.summaries import SnapshotSummary, read_summaries
from incremental_llm.registry.updates import GATED_REFS, DecisionPassedFor, State, failure

Problems = list[Problem]


def verify(connection: Connection, objects: ObjectStore) -> Problems:
    """Check refs, objects, versions, hash chain and decisions; empty when all is well."""
    damage = list(_database(connection))
    if damage:
        return damage
    snapshots, problems = _read_snapshots(connection)
    problems += invariants.chain(snapshots)
    problems += _references(snapshots, connection, objects)
    problems += invariants.refs(connection, snapshots)
    problems += invariants.whole(connection, snapshots)
    problems += invariants.rollbacks(connection, snapshots)
    problems += _promotions(connection, {s.version: s for s in snapshots}, objects)
    problems += invariants.erasures(connection, snapshots)
    problems += _tombstones(connection, objects)
    problems += [Problem(subject="durability", text=text) for text in [schema.durability(connection)] if text]
    return problems


def _database(connection: Connection) -> Iterator[Problem]:
    if connection.dialect.name != "sqlite":
        return
    try:
        lines = list(connection.exec_driver_sql("PRAGMA integrity_check").scalars())
    except DatabaseError as error:
        lines = [str(error.orig)]
    if lines != ["ok"]:
        yield Problem(subject="database", text=f"damaged ({'; '.join(map(str, lines[:3]))}): restore it from a copy")


def _read_snapshots(connection: Connection) -> tuple[list[Snapshot], Problems]:
    snapshots: list[Snapshot] = []
    problems: Problems = []
    summaries = {summary.version: summary for summary in read_summaries(connection)}
    for row in connection.execute(select(schema.snapshots).order_by(schema.snapshots.c.version)):
        subject = f"version {row.version}"
        try:
            snapshot = Snapshot.from_body(row.body, row.hash)
        except (IncrementalError, ValidationError) as error:
            problems.append(Problem(subject=subject, text=f"cannot be read ({error})"))
            continue
        if summaries.get(row.version) != SnapshotSummary.of(snapshot):
            problems.append(Problem(subject=subject, text="is listed as something else than it is"))
        if (snapshot.version, snapshot.attempt) != (row.version, row.attempt):
            problems.append(Problem(subject=subject, text=f"its row holds another one, version {snapshot.version}"))
        snapshots.append(snapshot)
    return snapshots, problems


def _references(snapshots: list[Snapshot], connection: Connection, objects: ObjectStore) -> Iterator[Problem]:
    """Each object is read once, however many versions need it."""
    needed: dict[str, str] = {}
    for reference in references((*snapshots, *read_attempts(connection))):
        needed.setdefault(reference.digest, reference.owner)
    stones = erased_objects(connection)
    for digest, owner in needed.items():
        try:
            _verify_object(digest, objects, stones)
        except IntegrityError as error:
            yield Problem(subject=f"object {digest[:12]}", text=f"needed by {owner}: {error}")


def _verify_object(digest: str, objects: ObjectStore, stones: Mapping[str, Tombstone]) -> None:
    """Raises IntegrityError where an object, or the last one in its place, is not what its digest says.

    One without a successor may be missing, if the erasure that its tombstone names is on record.
    """
    at = digest
    while (stone := objects.tombstone(at)) is not None:
        if stones.get(at) != stone:
            raise IntegrityError(f"its tombstone names erasure {stone.erasure}, which the registry has no record of")
        if stone.successor is None:
            return
        at = stone.successor
    objects.verify(at)
    if (path := objects.path(at)).is_dir():
        verify_tensors(path)


def _tombstones(connection: Connection, objects: ObjectStore) -> Iterator[Problem]:
    """What is gone was erased on the record, and what the record says was erased is gone."""
    recorded = erased_objects(connection)
    for name in sorted(path.name for path in objects.root.glob("*.erased.json")):
        if (digest := name.partition(".")[0]) not in recorded:
            text = "it has a tombstone, and the registry has no record of its erasure"
            yield Problem(subject=f"object {digest[:12]}", text=text)
    pending = {erasure.id for erasure in read_erasures(connection) if erasure.status == "pending"}
    for digest in sorted(digest for digest, stone in recorded.items() if stone.erasure not in pending):
        if objects.lies(digest):
            text = f"it was erased by {recorded[digest].erasure}, and still lies in {objects.root}"
            yield Problem(subject=f"object {digest[:12]}", text=text)


def _promotions(connection: Connection, snapshots: dict[int, Snapshot], objects: ObjectStore) -> Iterator[Problem]:
    moves = schema.ref_moves
    moved = connection.scalars(select(moves.c.after).where(moves.c.name.in_(GATED_REFS)))
    now = connection.scalars(select(schema.refs.c.version).where(schema.refs.c.name.in_(GATED_REFS)))
    base = snapshots[0].stack if 0 in snapshots else None
    for snapshot in _present(snapshots, {*moved, *now}):
        if snapshot.stack == base:
            continue
        text = failure(
            DecisionPassedFor(stack_digest=snapshot.stack.digest, decision=snapshot.decision),
            State(decisions=_readable(objects, snapshot.decision)),
        )
        if text is not None:
            yield Problem(subject=f"version {snapshot.version}", text=f"was promoted: {text}")


def _present(snapshots: dict[int, Snapshot], versions: Iterable[int]) -> list[Snapshot]:
    return [snapshots[version] for version in sorted(versions) if version in snapshots]


def _readable(objects: ObjectStore, digest: str | None) -> dict[str, object]:
    try:
        return {} if digest is None else {digest: objects.get_json(digest)}
    except IntegrityError:
        return {}
