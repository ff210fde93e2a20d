"""How events get their numbers: within one transaction, in order, each after what it refers to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from incremental_llm.feedback import tables
from incremental_llm.feedback.encode import Encoded
from incremental_llm.feedback.pseudonyms import Pseudonyms, read_pseudonyms

CHUNK = 500
"""Ids in one IN clause and rows in one insert: older SQLite builds allow 999 parameters."""

_ERASED_AGAIN = "it was erased with the person it was from, or is about what was: expected it not to come again"

# Built once: for a small append, building a statement costs more than running it.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_DIGESTS = sa.select(tables.events.c.id, tables.events.c.digest).where(tables.events.c.id.in_(_IDS))
_INTERACTIONS = sa.select(tables.events.c.id).where(tables.events.c.id.in_(_IDS), tables.events.c.type == "interaction")
_WAITING_FOR = sa.select(tables.waits.c.event_id).where(tables.waits.c.interaction_id.in_(_IDS))
_SET_COUNTER = (
    sa.update(tables.counters)
    .values(value=sa.bindparam("last"))
    .where(tables.counters.c.name == sa.bindparam("counter"))
)


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that was not stored: `position` is its index in what was appended.

    One that is `erased`, or is about what is, must be kept nowhere else either.
    """

    id: str
    reason: str
    position: int
    erased: bool = False


class Appending:
    """Events on their way into one transaction, a chunk of rows at a time."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.seq, self.arrival = tables.last_numbers(connection)
        self.added = self.position = 0
        self.repeated: list[int] = []
        self.refused: list[Refused] = []
        self.pseudonyms = read_pseudonyms(connection)

    def add(self, events: Sequence[Encoded]) -> None:
        """Store one chunk: a number for what is complete and what it completes, a place in the queue for the rest."""
        stored = _digests(self.connection, [event.id for event in events])
        known = _known_interactions(self.connection, {name for event in events for name in event.needs})
        queue = _Queue(self.connection, [event.id for event in events if event.type == "interaction"])
        gone = _erased(self.connection, events, self.pseudonyms)
        fresh: dict[str, tuple[Encoded, int]] = {}
        numbers: dict[str, int] = {}
        for position, event in enumerate(events, self.position):
            if event.id in gone:
                self.refused.append(Refused(event.id, _ERASED_AGAIN, position, erased=True))
                continue
            if event.id in stored:
                self._repeated(event.id, position, same=stored[event.id] == event.digest)
                continue
            stored[event.id] = event.digest
            self.arrival += 1
            fresh[event.id] = event, self.arrival
            missing = [name for name in dict.fromkeys(event.needs) if name not in known]
            if missing:
                queue.join(event.id, missing)
            else:
                numbers[event.id] = self._next()
            if event.type == "interaction":
                known.add(event.id)
                for name in queue.arrived(event.id):
                    numbers[name] = self._next()
        self.added += len(fresh)
        self.position += len(events)
        self._write(fresh, numbers)
        queue.write()

    def finish(self) -> None:
        """Write the counters back."""
        rows = [{"counter": "seq", "last": self.seq}, {"counter": "arrival", "last": self.arrival}]
        self.connection.execute(_SET_COUNTER, rows)

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def _repeated(self, name: str, position: int, *, same: bool) -> None:
        if same:
            self.repeated.append(position)
            return
        reason = (
            f"id {name!r} is stored with other content: expected the same content or a new id. "
            "The log is append-only: record a change as an event of its own"
        )
        self.refused.append(Refused(name, reason, position))

    def _write(self, fresh: Mapping[str, tuple[Encoded, int]], numbers: Mapping[str, int]) -> None:
        """`fresh` are new events with their arrival; a number of another belongs to one that waited till this chunk."""
        rows = [
            (event.id, numbers.get(event.id), arrival, event.type, event.digest, event.body)
            for event, arrival in fresh.values()
        ]
        tables.insert(self.connection, tables.events, rows)
        links = [(*link, event.id) for event, _ in fresh.values() for link in event.links]
        tables.insert(self.connection, tables.links, links)
        if late := [{"name": name, "number": number} for name, number in numbers.items() if name not in fresh]:
            number = sa.update(tables.events).where(tables.events.c.id == sa.bindparam("name"))
            self.connection.execute(number.values(seq=sa.bindparam("number")), late)


class _Queue:
    """Who waits for which interactions, as far as one chunk can change it; in order of arrival."""

    def __init__(self, connection: sa.Connection, arriving: Sequence[str]) -> None:
        self.connection = connection
        self.missing: dict[str, set[str]] = {}
        self.waiters: dict[str, list[str]] = {}
        self.joined: list[tuple[str, str]] = []
        self.left: list[tuple[str, str]] = []
        touched = [name for names in chunks(arriving) for name in self._waiting_for(names)]
        found = [row for names in chunks(touched) for row in self._waits_of(names)]
        for name, interaction, _arrival in sorted(found, key=lambda row: row[2]):
            self._enter(name, interaction)

    def _waiting_for(self, interactions: Sequence[str]) -> list[str]:
        return list(self.connection.scalars(_WAITING_FOR, {"ids": interactions}))

    def _waits_of(self, names: Sequence[str]) -> list[tuple[str, str, int]]:
        waits = sa.select(tables.waits.c.event_id, tables.waits.c.interaction_id, tables.events.c.arrival)
        waits = waits.join_from(tables.waits, tables.events, tables.waits.c.event_id == tables.events.c.id)
        rows = self.connection.execute(waits.where(tables.waits.c.event_id.in_(names)))
        return [(row.event_id, row.interaction_id, row.arrival) for row in rows]

    def _enter(self, name: str, interaction: str) -> None:
        self.missing.setdefault(name, set()).add(interaction)
        self.waiters.setdefault(interaction, []).append(name)

    def join(self, name: str, missing: Sequence[str]) -> None:
        """`name` waits for `missing`; nothing happens when that is empty."""
        for interaction in missing:
            self._enter(name, interaction)
            self.joined.append((name, interaction))

    def arrived(self, interaction: str) -> list[str]:
        """Events that waited for nothing else than `interaction`, in order of arrival."""
        names = self.waiters.pop(interaction, [])
        for name in names:
            self.missing[name].discard(interaction)
            self.left.append((name, interaction))
        return [name for name in names if not self.missing[name]]

    def write(self) -> None:
        """Store who joined and stayed, remove who left."""
        gone = set(self.left)
        if new := [(name, interaction) for name, interaction in self.joined if (name, interaction) not in gone]:
            rows = [{"event_id": name, "interaction_id": interaction} for name, interaction in new]
            self.connection.execute(sa.insert(tables.waits), rows)
        if old := [{"name": name, "there": interaction} for name, interaction in gone.difference(self.joined)]:
            both = (
                tables.waits.c.event_id == sa.bindparam("name"),
                tables.waits.c.interaction_id == sa.bindparam("there"),
            )
            self.connection.execute(sa.delete(tables.waits).where(*both), old)


def _digests(connection: sa.Connection, ids: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for names in chunks(ids):
        found |= {row.id: row.digest for row in connection.execute(_DIGESTS, {"ids": names})}
    return found


def _erased(connection: sa.Connection, events: Iterable[Encoded], pseudonyms: Pseudonyms | None) -> set[str]:
    """Ids of the events that were erased from the store, or are about an interaction that was."""
    if pseudonyms is None:
        return set()
    named = {event.id: {pseudonyms.of(name) for name in (event.id, *event.needs)} for event in events}
    stones = _digests(connection, {name for names in named.values() for name in names}).keys()
    return {name for name, names in named.items() if not stones.isdisjoint(names)}


def _known_interactions(connection: sa.Connection, ids: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for names in chunks(ids):
        found.update(connection.scalars(_INTERACTIONS, {"ids": names}))
    return found


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Distinct ids, as many at a time as one statement takes."""
    names = iter(dict.fromkeys(ids))
    while chunk := list(itertools.islice(names, CHUNK)):
        yield chunk
