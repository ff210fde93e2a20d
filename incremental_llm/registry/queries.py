"""What the tables hold, read as records: snapshots by version or ref, moves, attempts, quarantine."""

from __future__ import annotations

import difflib
import re

from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Connection, func, select

from incremental_llm.errors import IntegrityError, UnknownRefError
from incremental_llm.registry import schema
from incremental_llm.registry.attempts import Attempt, Quarantined
from incremental_llm.registry.snapshot import Snapshot


class RefMove(BaseModel):
    """One move of a ref; `before` is None for its first."""

    model_config = ConfigDict(frozen=True)

    name: str
    before: int | None
    after: int
    time: AwareDatetime
    reason: str


def read_snapshot(connection: Connection, version: int | None) -> Snapshot | None:
    """One version (None: the newest), or None when there is none."""
    table = schema.snapshots
    query = select(table.c.body, table.c.hash)
    query = (
        query.order_by(table.c.version.desc()).limit(1) if version is None else query.where(table.c.version == version)
    )
    row = connection.execute(query).first()
    return None if row is None else Snapshot.from_body(row.body, row.hash)


def read_attempts(connection: Connection, first: int | None = None, last: int | None = None) -> tuple[Attempt, ...]:
    """Rejected attempts in the order of recording; with bounds, those whose batch touches them."""
    table = schema.attempts
    query = select(table.c.body).order_by(table.c.number)
    if last is not None:
        query = query.where(table.c.first_seq <= last)
    if first is not None:
        query = query.where(table.c.last_seq >= first)
    return tuple(Attempt.model_validate_json(body) for body in connection.scalars(query))


_DIGITS = 18  # of a version: what the database can hold


def resolve(connection: Connection, ref: int | str) -> Snapshot:
    """A snapshot by version, ref or tag."""
    named = re.fullmatch(r"v?(\d+)", ref) if isinstance(ref, str) else None
    if named and len(named[1]) > _DIGITS:
        raise UnknownRefError(f"version {ref}: expected at most {_DIGITS} digits, found {len(named[1])}")
    version = int(named[1]) if named else ref
    if isinstance(version, str):
        return _pointed_to(connection, version)
    snapshot = read_snapshot(connection, version)
    if snapshot is None:
        newest = connection.scalar(select(func.max(schema.snapshots.c.version)))
        raise UnknownRefError(f"version {version}: expected one of 0 to {newest}, found none: see `illm registry list`")
    return snapshot


def _pointed_to(connection: Connection, name: str) -> Snapshot:
    version = ref_version(connection, name)
    snapshot = read_snapshot(connection, version)
    if snapshot is None:
        raise IntegrityError(f"ref {name}: expected version {version}, found none: restore the database from a copy")
    return snapshot


def ref_version(connection: Connection, name: str) -> int:
    """The version that a ref or a tag names."""
    names = {**read_tags(connection), **read_refs(connection)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ":"
    raise UnknownRefError(
        f"unknown ref {name!r}{hint} there are {', '.join(sorted(names))}, and versions written as 3 or v3"
    )


def all_snapshots(connection: Connection) -> tuple[Snapshot, ...]:
    query = select(schema.snapshots.c.body, schema.snapshots.c.hash).order_by(schema.snapshots.c.version)
    return tuple(Snapshot.from_body(row.body, row.hash) for row in connection.execute(query))


def read_committed(connection: Connection, attempt: str) -> Snapshot | None:
    """The version that an attempt made, if it made one."""
    table = schema.snapshots
    row = connection.execute(select(table.c.body, table.c.hash).where(table.c.attempt == attempt)).first()
    return None if row is None else Snapshot.from_body(row.body, row.hash)


def read_refs(connection: Connection) -> dict[str, int]:
    """Ref name -> version, by name."""
    return {row.name: row.version for row in connection.execute(select(schema.refs).order_by(schema.refs.c.name))}


def read_tags(connection: Connection) -> dict[str, int]:
    """Tag -> version, by name; without those that were taken back."""
    table = schema.tags
    query = select(table.c.name, table.c.version).where(table.c.removed.is_(None)).order_by(table.c.name)
    return {row.name: row.version for row in connection.execute(query)}


def read_moves(connection: Connection, ref: str) -> tuple[RefMove, ...]:
    """Every move of a ref, oldest first."""
    ref_version(connection, ref)
    moves = schema.ref_moves
    query = select(moves.c.name, moves.c.before, moves.c.after, moves.c.time, moves.c.reason)
    rows = connection.execute(query.where(moves.c.name == ref).order_by(moves.c.id))
    return tuple(RefMove(**row._asdict()) for row in rows)


def all_moves(connection: Connection) -> tuple[RefMove, ...]:
    """Every move of every ref, oldest first."""
    moves = schema.ref_moves
    query = select(moves.c.name, moves.c.before, moves.c.after, moves.c.time, moves.c.reason).order_by(moves.c.id)
    return tuple(RefMove(**row._asdict()) for row in connection.execute(query))


def read_quarantine(connection: Connection) -> tuple[Quarantined, ...]:
    """Quarantined events by seq."""
    rows = connection.execute(select(schema.quarantine).order_by(schema.quarantine.c.seq))
    return tuple(Quarantined(**row._asdict()) for row in rows)
