"""Every promise of the registry, checked on what is there now; each breach is one problem in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Connection, select
from sqlalchemy.exc import DatabaseError

from incremental_llm.errors import IncrementalError, IntegrityError
from incremental_llm.registry import schema
from incremental_llm.registry.erasure import SAME_COMMAND, erased_objects, read_erasures
from incremental_llm.registry.objects import ObjectStore, Tombstone
from incremental_llm.registry.queries import read_attempts
from incremental_llm.registry.references import references
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.updates import GATED_REFS, DecisionPassedFor, State, failure, same_base


class Problem(BaseModel):
    """One broken promise: what it is about ("version 3", "ref production", "object ab12…") and what is wrong."""

    model_config = ConfigDict(frozen=True)

    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}"


Problems = list[Problem]


def verify(connection: Connection, objects: ObjectStore) -> Problems:
    """Check refs, objects, versions, hash chain and decisions; empty when all is well."""
    damage = list(_database(connection))
    if damage:
        return damage
    snapshots, problems = _read_snapshots(connection)
    problems += _chain(snapshots)
    problems += _references(snapshots, connection, objects)
    problems += _refs(connection, snapshots)
    problems += _promotions(connection, {s.version: s for s in snapshots}, objects)
    problems += _erasures(connection)
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
    for row in connection.execute(select(schema.snapshots).order_by(schema.snapshots.c.version)):
        subject = f"version {row.version}"
        try:
            snapshot = Snapshot.from_body(row.body, row.hash)
        except (IncrementalError, ValidationError) as error:
            problems.append(Problem(subject=subject, text=f"cannot be read ({error})"))
            continue
        if (snapshot.version, snapshot.attempt) != (row.version, row.attempt):
            problems.append(Problem(subject=subject, text=f"its row holds another one, version {snapshot.version}"))
        snapshots.append(snapshot)
    return snapshots, problems


def _chain(snapshots: list[Snapshot]) -> Iterator[Problem]:
    if not snapshots or snapshots[0].version != 0 or snapshots[0].previous_hash is not None:
        yield Problem(subject="version 0", text="expected the base as first version, found none that can be read")
    for before, after in pairwise(snapshots):
        subject = f"version {after.version}"
        if after.version != before.version + 1:
            text = f"expected version {before.version + 1} after {before.version}: versions are missing"
            yield Problem(subject=subject, text=text)
        elif after.previous_hash != before.hash:
            yield Problem(subject=subject, text=f"not chained to version {before.version}: its hash differs")
        if not same_base(before.stack.base, after.stack.base):
            yield Problem(subject=subject, text=f"stands on another base than version {before.version}")
        for name in ("parent", "restores"):
            value = getattr(after, name)
            if value is not None and not 0 <= value < after.version:
                yield Problem(subject=subject, text=f"{name} is {value}, expected an earlier version")


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


def _erasures(connection: Connection) -> Iterator[Problem]:
    for erasure in read_erasures(connection):
        if erasure.status == "pending":
            text = f"begun {erasure.begun:%Y-%m-%d %H:%M} and not ended: it goes on with {SAME_COMMAND}"
            yield Problem(subject=f"erasure {erasure.id}", text=text)


def _refs(connection: Connection, snapshots: list[Snapshot]) -> Iterator[Problem]:
    versions = {snapshot.version for snapshot in snapshots}
    refs = {row.name: row.version for row in connection.execute(select(schema.refs))}
    if "production" not in refs:
        yield Problem(subject="ref production", text="expected it to exist, found none")
    for name, version in refs.items():
        if version not in versions:
            yield Problem(subject=f"ref {name}", text=f"points to version {version}, which is not there")
    moves = schema.ref_moves
    logged = {row.name: row.after for row in connection.execute(select(moves).order_by(moves.c.id))}
    for name in sorted(refs.keys() | logged.keys()):
        if refs.get(name) != logged.get(name):
            text = f"is {refs.get(name)}, but its last recorded move is to {logged.get(name)}"
            yield Problem(subject=f"ref {name}", text=text)


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
