"""Which objects are needed, what for, and by whom: what `verify` reads, `du` counts and `gc` leaves alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, select

from incremental_llm.registry import schema
from incremental_llm.registry.attempts import Attempt
from incremental_llm.registry.erasure import erased_objects
from incremental_llm.registry.queries import all_snapshots, read_attempts
from incremental_llm.registry.snapshot import Snapshot

PARTS = ("replay", "corrections", "dataset", "report", "decision", "recipe")


@dataclass(frozen=True)
class Reference:
    """One object that a version or a rejected attempt needs; `kind` is the part of it that the object is."""

    digest: str
    kind: str
    version: int | None = None
    attempt: str | None = None

    @property
    def owner(self) -> str:
        """Who needs it, in words."""
        return f"version {self.version}" if self.attempt is None else f"attempt {self.attempt[:12]}"


def references_of(record: Snapshot | Attempt) -> Iterator[Reference]:
    """The objects of one version or attempt, adapters first."""
    if isinstance(record, Snapshot):
        for adapter in record.stack.adapters:
            yield Reference(adapter, "adapter", version=record.version)
    elif record.adapter is not None:
        yield Reference(record.adapter, "adapter", attempt=record.id)
    for part in PARTS:
        if (digest := getattr(record, part, None)) is not None:
            if isinstance(record, Snapshot):
                yield Reference(digest, part, version=record.version)
            else:
                yield Reference(digest, part, attempt=record.id)


def references(records: Iterable[Snapshot | Attempt]) -> tuple[Reference, ...]:
    """The objects of all of them."""
    return tuple(reference for record in records for reference in references_of(record))


def needed(connection: Connection) -> frozenset[str]:
    """Every digest that a version, an attempt or an erasure names, whatever refs there are: versions are for ever.

    Raises:
        IntegrityError: a version cannot be read, so nobody can say what it needs.
    """
    found = {reference.digest for reference in references((*all_snapshots(connection), *read_attempts(connection)))}
    uses = schema.event_uses
    found.update(filter(None, connection.scalars(select(uses.c.adapter).distinct())))
    stones = erased_objects(connection)
    return frozenset(found | stones.keys() | {stone.successor for stone in stones.values() if stone.successor})
