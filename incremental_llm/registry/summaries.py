"""Versions as a list shows them, without reading what they are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from incremental_llm.registry import schema
from incremental_llm.registry.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """What of a snapshot fits in a line; `adapters` is how many its stack has."""

    version: int
    kind: str
    parent: int | None
    restores: int | None
    time: datetime
    adapters: int
    cursor: int
    note: str

    @classmethod
    def of(cls, snapshot: Snapshot) -> SnapshotSummary:
        """The summary of a snapshot."""
        return cls(
            version=snapshot.version,
            kind=snapshot.kind,
            parent=snapshot.parent,
            restores=snapshot.restores,
            time=snapshot.time,
            adapters=len(snapshot.stack.adapters),
            cursor=snapshot.cursor,
            note=snapshot.note,
        )


def read_summaries(connection: Connection, last: int | None = None) -> tuple[SnapshotSummary, ...]:
    """The newest `last` versions (None: all), oldest first."""
    table = schema.summaries.c
    columns = (table.version, table.kind, table.parent, table.restores, table.time)
    query = select(*columns, table.adapters, table.cursor, table.note).order_by(table.version.desc()).limit(last)
    parse = datetime.fromisoformat
    rows = connection.execute(query).all()
    return tuple(SnapshotSummary(v, k, p, r, parse(t), a, c, n) for v, k, p, r, t, a, c, n in reversed(rows))


def write_summary(connection: Connection, snapshot: Snapshot) -> None:
    """Keep the summary of a new version."""
    row = {**asdict(SnapshotSummary.of(snapshot)), "time": snapshot.time.isoformat()}
    connection.execute(insert(schema.summaries).values(row))


def write_all_summaries(connection: Connection) -> None:
    """Make them again from the versions, for a registry of a format that had none."""
    from incremental_llm.registry.queries import all_snapshots

    connection.execute(delete(schema.summaries))
    for snapshot in all_snapshots(connection):
        write_summary(connection, snapshot)
