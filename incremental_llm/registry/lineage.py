"""Traceable both ways: event -> increment -> snapshot, and back; and what a rollback undoes. No torch.

"Which adapters saw this user?" is one query over what each increment recorded of its events.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, Connection, func, select

from incremental_llm.registry import schema
from incremental_llm.registry.snapshot import Snapshot
from incremental_llm.registry.updates import EventUse

SAW = ("used", "replayed")
"""Outcomes by which an event's text reached the training of an adapter; every other outcome is a drop reason."""


class Sighting(BaseModel):
    """One event in one increment (`version`) or rejected attempt (`attempt`), and what became of it there."""

    model_config = ConfigDict(frozen=True)

    event: str
    seq: int | None
    version: int | None
    attempt: str | None
    adapter: str | None
    outcome: str


class AdapterSighting(BaseModel):
    """An adapter that was trained on events of a user, and on how many of them."""

    model_config = ConfigDict(frozen=True)

    adapter: str | None
    version: int | None
    attempt: str | None
    events: int


def event_uses(
    account: Mapping[str, str],
    seqs: Mapping[str, int],
    users: Mapping[str, Collection[str]],
    replayed: Mapping[str, Collection[str]] | None = None,
) -> tuple[EventUse, ...]:
    """A dataset's account as records to commit.

    Args:
        account: event id -> "used" or the reason it was left out.
        seqs: event id -> seq in the feedback store; an older event needs none.
        users: event id -> users and reviewers it came from.
        replayed: event id -> users, of old events that were mixed in again.
    """
    own = (
        EventUse(event=event, seq=seqs.get(event), users=tuple(sorted(users.get(event, ()))), outcome=outcome)
        for event, outcome in account.items()
    )
    old = (
        EventUse(event=event, seq=seqs.get(event), users=tuple(sorted(who)), outcome="replayed")
        for event, who in (replayed or {}).items()
        if account.get(event) != "used"
    )
    return (*own, *old)


def adapters_that_saw(connection: Connection, user: str) -> tuple[AdapterSighting, ...]:
    """Adapters trained on this user's events, rejected attempts included, oldest version first."""
    table = schema.event_uses
    made = (table.c.adapter, table.c.version, table.c.attempt)
    query = (
        select(*made, func.count(table.c.event.distinct()).label("events"))
        .where(table.c.user == user, table.c.outcome.in_(SAW))
        .group_by(*made)
        .order_by(table.c.version.is_(None), table.c.version, table.c.attempt)
    )
    return tuple(AdapterSighting(**row._asdict()) for row in connection.execute(query))


def sightings_of_event(connection: Connection, event: str) -> tuple[Sighting, ...]:
    """Every increment and rejected attempt that had this event, used or not."""
    return _sightings(connection, schema.event_uses.c.event == event)


def sightings_in_version(connection: Connection, version: int) -> tuple[Sighting, ...]:
    """Every event that the increment of this version had, used or not."""
    return _sightings(connection, schema.event_uses.c.version == version)


def sightings_in_attempt(connection: Connection, attempt: str) -> tuple[Sighting, ...]:
    """Every event that a rejected attempt had, used or not."""
    return _sightings(connection, schema.event_uses.c.attempt == attempt)


def versions_holding(
    snapshots: Iterable[Snapshot], adapters: Collection[str], retrained: Collection[int] = ()
) -> tuple[int, ...]:
    """Versions whose stack holds any of these adapters, or one that took the place of any of them.

    `snapshots` are all versions, dense from 0: an adapter that goes on, or that several became, holds what they held.
    One of the `retrained` versions does not: it was trained from the base, and holds what it has itself recorded.
    """
    listed = list(snapshots)
    holding = adapters_holding(listed, adapters, retrained)
    return tuple(s.version for s in listed if not holding.isdisjoint(s.stack.adapters))


def adapters_holding(
    snapshots: Sequence[Snapshot], adapters: Collection[str], retrained: Collection[int] = ()
) -> frozenset[str]:
    """These adapters, and those that took the place of any of them; see `versions_holding`."""
    holding = set(adapters)
    for snapshot in snapshots:
        if snapshot.kind == "increment" and snapshot.parent is not None and snapshot.version not in retrained:
            replaced = set(snapshots[snapshot.parent].stack.adapters) - set(snapshot.stack.adapters)
            if not holding.isdisjoint(replaced):
                holding.add(snapshot.stack.adapters[-1])
    return frozenset(holding)


def increments_in(snapshots: Sequence[Snapshot], version: int) -> tuple[int, ...]:
    """Increments whose data a version carries, newest first: its ancestors, following what a rollback restored.

    `snapshots` are all versions, dense from 0.
    """
    found: list[int] = []
    at: int | None = version
    while at is not None:
        snapshot = snapshots[at]
        if snapshot.kind == "increment":
            found.append(at)
        at = snapshot.restores if snapshot.kind == "rollback" else snapshot.parent
    return tuple(found)


def undone(snapshots: Sequence[Snapshot], head: int, target: int) -> tuple[int, ...]:
    """Increments that `head` carries and `target` does not, newest first."""
    kept = set(increments_in(snapshots, target))
    return tuple(version for version in increments_in(snapshots, head) if version not in kept)


def consumed(snapshots: Sequence[Snapshot], increment: int) -> range:
    """Seqs of the events that an increment moved the cursor past."""
    snapshot = snapshots[increment]
    before = snapshots[snapshot.parent].cursor if snapshot.parent is not None else 0
    return range(before + 1, snapshot.cursor + 1)


def given_back(snapshots: Sequence[Snapshot], head: int, target: int) -> dict[int, tuple[int, ...]]:
    """Increment -> seqs that it consumed and that `target` has not: what moving from `head` to `target` undoes."""
    kept = {seq for increment in increments_in(snapshots, target) for seq in consumed(snapshots, increment)}
    return {
        increment: tuple(seq for seq in consumed(snapshots, increment) if seq not in kept)
        for increment in undone(snapshots, head, target)
    }


def _sightings(connection: Connection, condition: ColumnElement[bool]) -> tuple[Sighting, ...]:
    table = schema.event_uses
    columns = (table.c.event, table.c.seq, table.c.version, table.c.attempt, table.c.adapter, table.c.outcome)
    query = select(*columns).where(condition).group_by(*columns).order_by(func.min(table.c.id))
    return tuple(Sighting(**row._asdict()) for row in connection.execute(query))
