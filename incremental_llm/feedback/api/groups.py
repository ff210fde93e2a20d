"""One transaction of many requests: their events, and the answers that their idempotency keys will get again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from incremental_llm.feedback.api.tables import answers
from incremental_llm.feedback.events import Event, load_event, references
from incremental_llm.feedback.sequence import CHUNK, chunks
from incremental_llm.feedback.store import AppendReport, FeedbackStore, append_within
from incremental_llm.feedback.tables import events as event_table

# Built once: building a statement costs more than SQLite needs to run it.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_ANSWERS = sa.select(answers).where(answers.c.id.in_(_IDS))
_OLD_ANSWERS = sa.select(answers.c.id).where(answers.c.stored <= sa.bindparam("since")).limit(CHUNK)
_BODIES = sa.select(event_table.c.id, event_table.c.type, event_table.c.body).where(event_table.c.id.in_(_IDS))
_WITHOUT_NUMBER = sa.select(event_table.c.id).where(event_table.c.id.in_(_IDS), event_table.c.seq.is_(None))


@dataclass(frozen=True, slots=True)
class Entry:
    """An event to store; without `own_time` the server gave the time, which is then no part of what was said."""

    event: Event
    own_time: bool = True


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """`id` stands for API key and header (64 hex digits), `body_digest` for what was sent with them."""

    id: str
    body_digest: str


@dataclass(frozen=True, slots=True)
class Request:
    """What one HTTP request wants stored, and the bytes that it occupies meanwhile."""

    entries: tuple[Entry, ...]
    idempotency: IdempotencyKey | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event; `waiting` is stored too, and waits for its interaction.

    One that is `erased`, or about what is, was refused for that.
    """

    id: str
    outcome: Literal["added", "waiting", "duplicate", "refused"]
    reason: str = ""
    erased: bool = False


Outcomes = tuple[Outcome, ...]


def store_group(store: FeedbackStore, requests: Sequence[Request], keep_seconds: float) -> list[Outcomes | None]:
    """Store all of it in one transaction; per request the outcome of each entry.

    A request whose idempotency key was answered within `keep_seconds` stores nothing and gets that answer, or None
    where it came with another body. If anything raises, nothing is stored.
    """
    now = time.time()
    with store.writing() as connection:
        answered, expired = _answered(connection, requests, now - keep_seconds)
        fresh: list[Request] = []
        first: dict[str, str] = {}  # body digests of the keys that come for the first time
        for request in requests:
            key = request.idempotency
            if key is None or (key.id not in answered and key.id not in first):
                fresh.append(request)
            if key is not None:
                first.setdefault(key.id, key.body_digest)
        entries = [entry for request in fresh for entry in request.entries]
        events = _with_first_times(connection, entries)
        report = append_within(connection, events)
        every = iter(_outcomes(connection, events, report))
        results = {id(request): tuple(next(every) for _ in request.entries) for request in fresh}
        new = {r.idempotency.id: (r.idempotency.body_digest, results[id(r)]) for r in fresh if r.idempotency}
        _forget(connection, expired, now - keep_seconds)
        gone = {one.id for one in report.refused if one.erased}  # kept nowhere, not even in an answer
        _remember(connection, {k: v for k, v in new.items() if gone.isdisjoint(one.id for one in v[1])}, now)
    answered |= new
    return [results[id(request)] if id(request) in results else _again(request, answered) for request in requests]


def _again(request: Request, answered: dict[str, tuple[str, Outcomes]]) -> Outcomes | None:
    assert request.idempotency is not None
    body_digest, outcomes = answered[request.idempotency.id]
    return outcomes if body_digest == request.idempotency.body_digest else None


def _answered(
    connection: sa.Connection, requests: Iterable[Request], since: float
) -> tuple[dict[str, tuple[str, Outcomes]], list[str]]:
    """What the idempotency keys were answered with, and those of them that were answered too long ago."""
    found: dict[str, tuple[str, Outcomes]] = {}
    expired: list[str] = []
    for ids in chunks(request.idempotency.id for request in requests if request.idempotency):
        for row in connection.execute(_ANSWERS, {"ids": ids}):
            if row.stored > since:
                found[row.id] = (row.body_digest, tuple(Outcome(*one) for one in json.loads(row.outcomes)))
            else:
                expired.append(row.id)
    return found, expired


def _forget(connection: sa.Connection, expired: Sequence[str], since: float) -> None:
    """Remove answers that come again, and some others that are too old: as many as a group brings, or more."""
    old = list(connection.scalars(_OLD_ANSWERS, {"since": since}))
    for ids in chunks([*expired, *old]):
        connection.execute(sa.delete(answers).where(answers.c.id.in_(ids)))


def _remember(connection: sa.Connection, new: dict[str, tuple[str, Outcomes]], now: float) -> None:
    if new:
        rows = [
            {"id": name, "body_digest": digest, "outcomes": _as_json(outcomes), "stored": int(now)}
            for name, (digest, outcomes) in new.items()
        ]
        connection.execute(sa.insert(answers), rows)


def _as_json(outcomes: Outcomes) -> str:
    return json.dumps([(one.id, one.outcome, one.reason) for one in outcomes], separators=(",", ":"))


def _with_first_times(connection: sa.Connection, entries: Sequence[Entry]) -> list[Event]:
    """The events; one whose time the server gave has the time of the event with its id that came first, if any did."""
    times: dict[str, datetime | None] = {}
    for ids in chunks(entry.event.id for entry in entries if not entry.own_time):
        rows = connection.execute(_BODIES, {"ids": ids})
        times |= {row.id: load_event(row.type, row.body).time for row in rows}
    events: list[Event] = []
    for entry in entries:
        time_of_first = times.setdefault(entry.event.id, entry.event.time)
        if not entry.own_time and time_of_first != entry.event.time:
            events.append(entry.event.model_copy(update={"time": time_of_first}))
        else:
            events.append(entry.event)
    return events


def _outcomes(connection: sa.Connection, events: Sequence[Event], report: AppendReport) -> Iterable[Outcome]:
    refused = {one.position: one for one in report.refused}
    repeated = frozenset(report.repeated)
    waiting: set[str] = set()
    for ids in chunks(event.id for event in events if references(event)):
        waiting.update(connection.scalars(_WITHOUT_NUMBER, {"ids": ids}))
    for position, event in enumerate(events):
        if position in refused:
            yield Outcome(event.id, "refused", refused[position].reason, refused[position].erased)
        elif position in repeated:
            yield Outcome(event.id, "duplicate")
        else:
            yield Outcome(event.id, "waiting" if event.id in waiting else "added")
